"""Holes: prompts written by hand, candidates and their ranks, retries, early stops, and other files before the prompt."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.context import ContextFile, RepositoryContext
from codekiln.generate.infilling import (
    LEFT_TO_RIGHT_NOTE,
    FilledDocument,
    HoledDocument,
    InfillSettings,
    infill,
    infill_jobs,
)
from codekiln.generate.postprocess import RAW, PostProcessing, postprocess
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.model.huggingface import load_model
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS, SPM_SPECIAL_TOKENS
from tests.small import TINY

PARTS = ("def f(a):\n    b = ", "\n    c = ", "\n    return c\n")
SAMPLING = SamplingParams(temperature=1.0, top_p=1.0, seed=3)
FILES = (ContextFile("pack/far.py", "far = 1\n"), ContextFile("pack/near.py", "near = 2"))
CONTEXT = RepositoryContext(files=FILES, path="pack/main.py", repository="pack")
MISLEADING = "<|endoftext|><|fim_middle|><|repo_name|><|file_sep|><file_sep><filename><|mask:0|>"


@pytest.fixture(scope="module")
def completer(small_run: Path) -> Completer:
    return Completer.load(small_run)


def with_special_tokens(tokenizer: Tokenizer, *special: str, context_length: int = 512) -> Completer:
    """A model with random weights and the merges of a tokenizer, whose special tokens are these."""
    record = json.loads(json.dumps(tokenizer.record))
    flags, first = record["added_tokens"][0], min(tokenizer.special_ids)
    record["added_tokens"] = [flags | {"id": first + k, "content": token} for k, token in enumerate(special)]
    changed = Tokenizer(record, origin="changed")
    model = Transformer(dataclasses.replace(TINY, vocab_size=changed.vocab_size, context_length=context_length))
    init_weights(model, torch.Generator().manual_seed(0))
    return Completer.of_model(model.eval(), changed)


def spelled(completer: Completer, text: str) -> list[int]:
    """The ids of a text in which «token» is a special token."""
    tokenizer, ids = completer.tokenizer, list[int]()
    for k, piece in enumerate(text.replace("»", "«").split("«")):
        ids += [tokenizer.special_id(piece)] if k % 2 else tokenizer.encode(piece) if piece else []
    return ids


def test_holes_of_incoder_are_in_one_prompt_and_filled_in_order(tokenizer: Tokenizer) -> None:
    completer = with_special_tokens(tokenizer, *INCODER_SPECIAL_TOKENS)
    params = CompletionParams(sampling=SAMPLING, max_new_tokens=9)
    document = HoledDocument(("a = ", "\nb = ", "\nc = ", "\n"))
    settings = InfillSettings(params=params, postprocessing=RAW)
    filled = infill(completer, [document], settings)[0]
    prompt = "«<|endoftext|>»a = «<|mask:0|>»\nb = «<|mask:1|>»\nc = «<|mask:2|>»\n«<|mask:3|>»"
    written: list[str] = []
    for k in range(3):
        ids = spelled(completer, prompt + "".join(written) + f"«<|mask:{k}|>»")
        answer = completer.complete([ids], params)[0]
        assert filled.holes[k].text == answer.text
        written.append(f"«<|mask:{k}|>»{answer.text}«<|endofmask|>»")
    one = infill(completer, [HoledDocument(("a = ", "\n"))], settings)[0]
    ids = spelled(completer, "«<|endoftext|>»a = «<|mask:0|>»\n«<|mask:1|>»«<|mask:0|>»")
    assert one.text == f"a = {completer.complete([ids], params)[0].text}\n"


def test_holes_of_incoder_that_do_not_fit_are_filled_one_by_one(tokenizer: Tokenizer) -> None:
    completer = with_special_tokens(tokenizer, *INCODER_SPECIAL_TOKENS)
    params = CompletionParams(sampling=GREEDY, max_new_tokens=60)
    document = HoledDocument(("x = 1\n" * 100, "\n", "\n" + "y = 2\n" * 100))
    filled = infill(completer, [document], InfillSettings(params=params, postprocessing=RAW))[0]
    request = InfillRequest(document.parts[0], document.parts[1] + document.parts[2])
    assert filled.holes[0].text == completer.complete([request], params)[0].text


def test_each_hole_sees_the_infills_before_it(completer: Completer) -> None:
    params = CompletionParams(sampling=GREEDY, max_new_tokens=12)
    filled = infill(completer, [HoledDocument(PARTS)], InfillSettings(params=params, postprocessing=RAW))[0]
    first = completer.complete([InfillRequest(PARTS[0], PARTS[1] + PARTS[2])], params)[0]
    second = completer.complete([InfillRequest(PARTS[0] + first.text + PARTS[1], PARTS[2])], params)[0]
    assert [hole.text for hole in filled.holes] == [first.text, second.text]
    assert filled.text == PARTS[0] + first.text + PARTS[1] + second.text + PARTS[2] and not filled.notes


def candidates_of(filled: FilledDocument) -> list[tuple[str, tuple[int, ...]]]:
    """The texts and ids of all candidates. Log-probabilities differ by rounding from batch to batch."""
    return [(each.text, each.completion.tokens) for hole in filled.holes for each in hole.candidates]


def test_documents_are_filled_together_as_alone(completer: Completer) -> None:
    documents = [HoledDocument(PARTS), HoledDocument(("x = ", "\n")), HoledDocument(("", "import os\n"))]
    params = CompletionParams(sampling=SAMPLING, max_new_tokens=10, n=3)
    for rank_by in ("mean", "suffix"):
        settings = InfillSettings(params=params, rank_by=rank_by, n_retries=1)
        reported: dict[int, object] = {}
        together = infill(completer, documents, settings, reported.__setitem__)
        alone = [infill(completer, [document], settings)[0] for document in documents]
        assert list(map(candidates_of, together)) == list(map(candidates_of, alone))
        assert reported == dict(enumerate(together))


@pytest.mark.parametrize("rank_by", ["total", "mean", "suffix"])
def test_candidates_are_distinct_and_ranked(completer: Completer, rank_by: str) -> None:
    params = CompletionParams(sampling=SAMPLING, max_new_tokens=8, n=12)
    settings = InfillSettings(params=params, rank_by=rank_by)  # type: ignore[arg-type]
    prefix, suffix = PARTS[0], "\n    return b\n"
    candidates = infill(completer, [HoledDocument((prefix, suffix))], settings)[0].holes[0].candidates
    drawn = completer.complete(
        [InfillRequest(prefix, suffix)],
        dataclasses.replace(params, sampling=dataclasses.replace(SAMPLING, logprobs=0)),
    )
    texts = [each.text for each in candidates]
    assert len(set(texts)) == len(texts) > 3
    assert all(each.text == postprocess(prefix, each.completion.text, suffix, PostProcessing()) for each in candidates)
    assert all(any(each.completion.text.startswith(raw.text[:4]) for raw in drawn) for each in candidates)

    def score(text: str) -> float:
        """The best score of the samples with this text, computed without the engine's batches."""
        if rank_by == "suffix":
            tokenizer = completer.tokenizer
            before = [tokenizer.eos_id, *tokenizer.encode(prefix), *tokenizer.encode(text)]
            return -completer.score([(before, tokenizer.encode(suffix))])[0]
        sums = [[each.logprob for each in found.completion.logprobs] for found in candidates if found.text == text]
        return max(sum(row) / (len(row) if rank_by == "mean" else 1) for row in sums)

    for ended in (True, False):
        scores = [score(each.text) for each in candidates if each.is_ended == ended]
        assert all(a >= b - 1e-3 for a, b in itertools.pairwise(scores))
    assert [each.is_ended for each in candidates] == sorted((each.is_ended for each in candidates), reverse=True)


def test_suffix_is_scored_after_one_reading_of_the_prefix(completer: Completer) -> None:
    prefix = "".join(f"value_{n} = {n}\n" for n in range(12))
    params = CompletionParams(sampling=SAMPLING, max_new_tokens=6, n=8)
    stats = completer.engine.stats
    before = dataclasses.replace(stats)
    settings = InfillSettings(params=params, postprocessing=RAW, rank_by="suffix")
    candidates = infill(completer, [HoledDocument((prefix, "\nx\n"))], settings)[0].holes[0].candidates
    n_prefix = len(completer.tokenizer.encode(prefix))
    assert len(candidates) > 4
    n_read = (stats.prompt_tokens - before.prompt_tokens) - (stats.cached_prompt_tokens - before.cached_prompt_tokens)
    assert n_read < 2 * n_prefix + 30 * len(candidates)
    # The method that scores any rows reads a shared prompt once, too.
    ids = completer.tokenizer.encode("other " + prefix)
    before = dataclasses.replace(stats)
    together = completer.score([(ids, [n, n + 1]) for n in range(40, 46)])
    assert stats.prompt_tokens - before.prompt_tokens == 6 * (len(ids) + 2)
    assert stats.cached_prompt_tokens - before.cached_prompt_tokens >= 5 * (len(ids) - 1)
    alone = [completer.score([([7, *ids], [n, n + 1])]) for n in range(40, 46)]
    assert len(alone) == len(together) and all(value > 0 for value in together)


def test_unfinished_candidates_are_drawn_again(completer: Completer) -> None:
    document = HoledDocument(("def count(", "items):\n    return 1\n"))
    params = CompletionParams(sampling=SAMPLING, max_new_tokens=4, n=6)

    def n_ended(n_retries: int) -> int:
        settings = InfillSettings(params=params, postprocessing=RAW, n_retries=n_retries)
        return sum(each.is_ended for each in infill(completer, [document], settings)[0].holes[0].candidates)

    request = InfillRequest(document.parts[0], document.parts[1])
    first = completer.complete([request], params)
    missing = sum(each.finish_reason == "length" for each in first)
    assert missing, "the test needs candidates that the token limit cuts off"
    again = completer.complete(
        [request],
        dataclasses.replace(params, n=missing, sampling=dataclasses.replace(SAMPLING, seed=SAMPLING.seed + 1)),
    )
    settings = InfillSettings(params=params, postprocessing=RAW, n_retries=1)
    found = {each.text for each in infill(completer, [document], settings)[0].holes[0].candidates}
    assert found == {each.text for each in (*first, *again) if each in again or each.finish_reason == "stop"}
    assert n_ended(8) >= n_ended(0)


def test_generation_stops_where_the_mode_ends(completer: Completer) -> None:
    prefix, suffix = "def open_door(name, count=3):\n", "\n\ndef count_doors(items):\n"
    params = CompletionParams(sampling=with_newlines(completer), max_new_tokens=60)
    whole = completer.complete([InfillRequest(prefix, suffix)], params)[0]
    assert whole.text.count("\n") > 3
    for mode in ("line", "block", "scope", "hole"):
        steps = PostProcessing.raw(mode)
        settings = InfillSettings(params=params, postprocessing=steps)
        candidate = infill(completer, [HoledDocument((prefix, suffix))], settings)[0].holes[0].candidates[0]
        assert candidate.text == postprocess(prefix, whole.text, suffix, steps)
        assert whole.text.startswith(candidate.completion.text)
        assert mode != "block" or candidate.completion.completion_tokens < whole.completion_tokens
        assert mode != "line" or "\n" not in candidate.completion.text


def with_newlines(completer: Completer) -> SamplingParams:
    """Settings with which the small model writes many line ends."""
    (newline,) = completer.tokenizer.encode("\n")
    return dataclasses.replace(SAMPLING, logit_bias=((newline, 5.0),))


def test_a_sample_ends_when_the_caller_has_seen_enough(completer: Completer) -> None:
    params = CompletionParams(sampling=with_newlines(completer), max_new_tokens=60)
    request = InfillRequest("def open_door(name, count=3):\n")
    whole = completer.complete([request], params)[0]
    asked: list[str] = []

    def stop_when(text: str) -> bool:
        asked.append(text)
        return text.count("\n") >= 2

    found = completer.complete([request], dataclasses.replace(params, stop_when=stop_when))[0]
    assert whole.text.startswith(found.text) and found.text.count("\n") == 2 and found.finish_reason == "stop"
    assert found.tokens == whole.tokens[: len(found.tokens)] and len(asked) == 2


def test_drafts_do_not_change_the_tokens_before_a_stop_string(completer: Completer, small_run: Path) -> None:
    """Tokens that were drafted after the stop string are not counted."""
    drafting = Completer.load(small_run)
    plain = Completer.of_model(load_model(small_run / "model"), drafting.tokenizer, has_drafts=False)
    params = CompletionParams(sampling=GREEDY, max_new_tokens=60)
    request = InfillRequest("steps = [name.open(door)]\n" * 6)
    whole = plain.complete([request], params)[0]
    for end in range(10, len(whole.text), 2):
        stopping = dataclasses.replace(params, stop=(whole.text[5:end],))
        assert drafting.complete([request], stopping) == plain.complete([request], stopping)
    assert drafting.engine.stats.accepted_tokens


def test_model_without_infilling_continues_the_prefix_with_a_note(tokenizer: Tokenizer) -> None:
    completer = with_special_tokens(tokenizer, "<|endoftext|>")
    params = CompletionParams(sampling=SAMPLING, max_new_tokens=20, n=4)
    prefix, suffix = "def f(a):\n    ", "\n    return b\n"
    raw = InfillSettings(params=params, postprocessing=RAW)
    filled = infill(completer, [HoledDocument((prefix, suffix))], raw)[0]
    assert filled.notes == (LEFT_TO_RIGHT_NOTE,)
    expected = {each.text for each in completer.complete([InfillRequest(prefix)], params)}
    assert {each.text for each in filled.holes[0].candidates} == expected
    ranked = infill(completer, [HoledDocument((prefix, suffix))], dataclasses.replace(raw, rank_by="suffix"))[0]
    scores = [each.suffix_logprob for each in ranked.holes[0].candidates]
    assert None not in scores and scores == sorted(scores, key=lambda score: -(score or 0))
    at_end = infill(completer, [HoledDocument((prefix, ""))], dataclasses.replace(raw, rank_by="suffix"))[0]
    assert not at_end.notes and at_end.holes[0].candidates[0].suffix_logprob is not None


def test_jobs_of_a_caller_that_gives_up_are_cancelled(completer: Completer) -> None:
    jobs = infill_jobs(
        completer,
        HoledDocument(PARTS),
        InfillSettings(params=CompletionParams(sampling=GREEDY, max_new_tokens=50)),
    )
    pending = next(jobs)
    completer.step()
    for job in pending:
        completer.cancel(job)
    jobs.close()
    completer.step()
    assert completer.engine.is_idle


PROMPTS = [
    (
        SPM_SPECIAL_TOKENS,
        "«<|endoftext|>»far = 1\n«<|endoftext|>»near = 2«<|endoftext|>»"
        "«<|fim_suffix|>»\nb\n«<|fim_prefix|>»a = «<|fim_middle|>»",
    ),
    (
        (*PSM_SPECIAL_TOKENS, "<|repo_name|>", "<|file_sep|>"),
        "«<|repo_name|>»pack\n«<|file_sep|>»pack/far.py\nfar = 1\n«<|file_sep|>»pack/near.py\nnear = 2\n"
        "«<|file_sep|>»pack/main.py\n«<|fim_prefix|>»a = «<|fim_suffix|>»\nb\n«<|fim_middle|>»",
    ),
    (
        ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"),
        "«<repo_name>»pack«<file_sep>»pack/far.py\nfar = 1\n«<file_sep>»pack/near.py\nnear = 2\n«<file_sep>»"
        "«<fim_prefix>»pack/main.py\na = «<fim_suffix>»\nb\n«<fim_middle>»",
    ),
    (
        ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<reponame>"),
        "«<reponame>»pack«<filename>»pack/far.py\nfar = 1\n«<|endoftext|>»"
        "«<reponame>»pack«<filename>»pack/near.py\nnear = 2\n«<|endoftext|>»"
        "«<fim_prefix>»«<reponame>»pack«<filename>»pack/main.py\na = «<fim_suffix>»\nb\n«<fim_middle>»",
    ),
    (
        INCODER_SPECIAL_TOKENS,
        "«<|endoftext|>»<| file ext=.py filename=far.py |>\nfar = 1\n\n<|/ file |>\n"
        "«<|endoftext|>»<| file ext=.py filename=near.py |>\nnear = 2\n<|/ file |>\n"
        "«<|endoftext|>»<| file ext=.py filename=main.py |>\na = «<|mask:0|>»\nb\n«<|mask:1|>»«<|mask:0|>»",
    ),
    (
        ("<s>", "</s>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        "«<s>»far = 1\n«</s>»«<s>»near = 2«</s>»«<s>»«<｜fim▁begin｜>»a = «<｜fim▁hole｜>»\nb\n«<｜fim▁end｜>»",
    ),
]


@pytest.mark.parametrize(("special", "expected"), PROMPTS, ids=[prompt[0][1] for prompt in PROMPTS])
def test_other_files_come_in_the_format_of_the_model(
    tokenizer: Tokenizer, special: tuple[str, ...], expected: str
) -> None:
    completer = with_special_tokens(tokenizer, *special)
    decoded = _joined(completer, completer.prompt_ids(InfillRequest("a = ", "\nb\n", CONTEXT), 16))
    assert decoded == expected
    # Without files, the prompt is as it was.
    empty = RepositoryContext(files=(), path="pack/main.py", repository="pack")
    plain = completer.prompt_ids(InfillRequest("a = ", "\nb\n"), 16)
    assert completer.prompt_ids(InfillRequest("a = ", "\nb\n", empty), 16) == plain


def _joined(completer: Completer, ids: list[int]) -> str:
    """Ids as text in which «token» is a special token."""
    names = {number: f"«{token}»" for token, number in completer.tokenizer.special_tokens.items()}
    return b"".join(
        names[token].encode() if token in names else completer.tokenizer.decode_bytes([token]) for token in ids
    ).decode()


@pytest.mark.parametrize("special", [prompt[0] for prompt in PROMPTS], ids=[prompt[0][1] for prompt in PROMPTS])
def test_files_and_names_never_become_special_tokens(tokenizer: Tokenizer, special: tuple[str, ...]) -> None:
    completer = with_special_tokens(tokenizer, *special, context_length=4096)
    harmless = RepositoryContext(files=(ContextFile("n", "n"), ContextFile("n", "n")), path="n", repository="n")
    file = ContextFile(MISLEADING, MISLEADING)
    misleading = RepositoryContext(files=(file, file), path=MISLEADING, repository=MISLEADING)
    special_ids = completer.tokenizer.special_ids
    found = [
        [token for token in completer.prompt_ids(InfillRequest("a", "b", context), 16) if token in special_ids]
        for context in (harmless, misleading)
    ]
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize("special", [prompt[0] for prompt in PROMPTS], ids=[prompt[0][1] for prompt in PROMPTS])
def test_context_is_cut_by_files_and_then_by_lines(tokenizer: Tokenizer, special: tuple[str, ...]) -> None:
    completer = with_special_tokens(tokenizer, *special)
    files = tuple(
        ContextFile(f"f{n}.py", "".join(f"v{n}_{line} = {line}\n" for line in range(n * 2 + 3))) for n in range(6)
    )
    context = RepositoryContext(files=files, path="main.py", repository="r")
    room = (completer.context_length - 16) // 2
    found = completer.context_ids(context, 16)
    assert room - 40 < len(found) <= room
    text = completer.tokenizer.decode(found.before)
    assert files[5].text in text and "v0_0" not in text
    (cut,) = [n for n in range(6) if f"v{n}_0 " in text and files[n].text not in text]
    kept = text[text.index(f"v{cut}_0 ") :]
    assert all(file.text in text for file in files[cut + 1 :])
    assert kept.startswith(f"v{cut}_0 = 0\n") and f"v{cut}_{cut * 2 + 2} " not in kept
    lines = [line for line in kept.splitlines() if line.startswith(f"v{cut}_")]
    assert lines == files[cut].text.splitlines()[: len(lines)]
    # A long prompt keeps all of the context, and the context keeps its place while a user types.
    for typed in ("x", "x = 1\n" * 300, "x = 1\n" * 300 + "y"):
        ids = completer.prompt_ids(InfillRequest(typed, "z\n" * 300, context), 16)
        assert tuple(ids[: len(found.before)]) == found.before and len(ids) + 16 <= completer.context_length
    huge = RepositoryContext(files=(ContextFile("one", "x" * 5000),))
    assert len(completer.context_ids(huge, 16)) == 0


def test_context_is_read_once_while_a_user_types(tokenizer: Tokenizer) -> None:
    completer = with_special_tokens(tokenizer, *PROMPTS[0][0])
    params = CompletionParams(sampling=GREEDY, max_new_tokens=2)
    n_context = len(completer.context_ids(CONTEXT, 2))
    completer.complete([InfillRequest("a", "b", CONTEXT)], params)
    for typed in ("a =", "a = 1\n"):
        assert completer.complete([InfillRequest(typed, "b", CONTEXT)], params)[0].cached_tokens >= n_context
