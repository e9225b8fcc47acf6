"""Recall: matches against brute force, the mixture against its formula, and the engine with it."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from codekiln.corpus.documents import read_documents
from codekiln.errors import CodekilnError, ConfigError, InvalidFileError, MissingFileError
from codekiln.evaluate.recall import split_repositories
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.engine import Engine
from codekiln.generate.fit_recall import fit_gate, record_rows
from codekiln.generate.recall import Gate, GateRow, Recall, RequestText, SampleText, TokenKinds, run_gate
from codekiln.generate.recall_kernels import N_FEATURES, N_INPUTS, N_PREDICTIONS
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.generate.windows import score_document, scored_windows
from codekiln.index.build import sort_documents
from codekiln.index.continuations import MAX_READ, SortedTokens, find_continuations, find_in_text
from codekiln.runs import read_stage_record
from tests.command import codekiln
from tests.test_index import Documents, followers_in, index_of, longest_in, random_documents

VOCAB = 40
# Even ids begin and end in a word, for example `a`, and the others do not.
TOKENS = tuple(b"a" if number % 2 == 0 else b"." for number in range(VOCAB))
ALL_TEXT = TokenKinds.of(VOCAB, (), TOKENS)


class Sources:
    """Sorted documents as a source."""

    def __init__(self, documents: Documents, vocab_size: int) -> None:
        self.shards = (sort_documents([np.array(d, np.uint16) for d in documents], vocab_size),)


def trained_gate(seed: int = 0, *, is_sure: bool = False) -> Gate:
    """A gate with random weights; a sure one trusts the predictions."""
    rng = np.random.default_rng(seed)
    shapes = [(N_INPUTS,), (N_INPUTS,), (N_INPUTS, 32), (32,), (32, N_PREDICTIONS + 1), (N_PREDICTIONS + 1,)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[1] = np.abs(arrays[1]) + np.float32(0.5)
    arrays[4] *= np.float32(0.1)  # so that no weight is near 0
    if is_sure:
        arrays[4][:] = 0
        arrays[5][:] = np.array([-6, 0, 0, 0, 0, 0])
    return Gate(*arrays)


# Matches


@pytest.mark.parametrize("n_shards", [1, 3])
def test_continuations_are_those_of_brute_force(n_shards: int, tmp_path: Path) -> None:
    documents = random_documents(0, 3, VOCAB)
    parts = [documents[k::n_shards] for k in range(n_shards)]
    on_disk = index_of(tmp_path / "index", documents, VOCAB).shards
    shards = on_disk if n_shards == 1 else tuple(Sources(part, VOCAB).shards[0] for part in parts)
    rng = np.random.default_rng(1)
    n_checked = 0
    for _ in range(200):
        document = documents[rng.integers(len(documents))]
        context = document[: rng.integers(len(document) + 1)][-6:]
        found = find_continuations(shards, np.array(context, np.int64), 5)
        assert found.length == longest_in(documents, context, 5)
        expected = (
            Counter(followers_in(documents, context[len(context) - found.length :], None)) if found.length else {}
        )
        if found.count <= MAX_READ:
            total = sum(expected.values())
            fractions = dict(zip(found.ids.tolist(), found.fractions.tolist(), strict=True))
            assert fractions == pytest.approx({i: n / total for i, n in expected.items()})
            n_checked += bool(total)
        for k, first in enumerate(found.ids.tolist()):
            source = found.sources[k if len(found.sources) > 1 else 0]
            assert isinstance(source, SortedTokens)
            assert source.ids[source.text[found.places[k]]] == first
        if draft := found.draft(4):
            sequence = context[len(context) - found.length :] + draft
            assert any(sequence == d[i : i + len(sequence)] for d in documents for i in range(len(d)))
    assert n_checked > 50


def test_many_places_are_read_in_equal_steps() -> None:
    documents = [[1, 2]] * 600 + [[1, 3]] * 400
    shard = Sources(documents, VOCAB).shards[0]
    found = find_continuations((shard,), np.array([1]))
    assert (found.length, found.count, found.ids.tolist()) == (1, 1000, [2, 3])
    assert found.fractions == pytest.approx([0.6, 0.4], abs=1 / MAX_READ)


def test_matches_in_the_request_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        text = rng.choice([1, 2, 3, -1], rng.integers(1, 40), p=[0.4, 0.3, 0.25, 0.05])
        n = len(text)
        found = find_in_text(text, n)
        lengths = {
            j: next((k for k in range(j) if text[j - 1 - k] != text[n - 1 - k] or text[n - 1 - k] < 0), j)
            for j in range(1, n)
        }
        longest = max(lengths.values(), default=0)
        assert found.length == longest
        followers = Counter(int(text[j]) for j, length in lengths.items() if length == longest and text[j] >= 0)
        if longest:
            total = sum(followers.values())
            expected = {i: c / total for i, c in followers.items()}
            assert dict(zip(found.ids.tolist(), found.fractions.tolist(), strict=True)) == pytest.approx(expected)
            if found.count == 1 and total:
                (place,) = (j for j, length in lengths.items() if length == longest)
                rest = text[place:].tolist()
                assert found.draft(50) == (rest[: rest.index(-1)] if -1 in rest else rest)


def test_control_ids_and_other_texts_are_not_matched_across() -> None:
    kinds = TokenKinds.of(VOCAB, (9,))
    text = SampleText(RequestText(before=(1, 2, 9, 3), others=((5, 6), (7, 1, 2, 8))), kinds)
    assert text.find(Recall(), []).predictions[-1].length == 0  # 3 is new
    own = text.find(Recall(), [1, 2]).predictions[-1]
    assert own.length == 2 and set(own.ids.tolist()) == {8}  # what follows in the prefix is a control id
    assert text.find(Recall(), [6]).predictions[-1].ids.tolist() == []  # the end of a text


# The mixture


@pytest.mark.parametrize("seed", range(5))
def test_mixture_is_its_formula(seed: int) -> None:
    documents = random_documents(seed, 5, VOCAB)
    recall = Recall(trained_gate(seed), corpus=Sources(documents, VOCAB), workspace=Sources(documents[:9], VOCAB))
    context = next(d for d in documents if len(d) > 12)[:12]
    evidence = SampleText(RequestText((*context, *context)), ALL_TEXT).find(recall, [])
    assert sum(len(each.ids) > 0 for each in evidence.predictions) >= 3
    torch.manual_seed(seed)
    logits = 3 * torch.randn(2, VOCAB)
    stop = torch.tensor([0, 39])
    nothing = SampleText(RequestText(()), ALL_TEXT).find(recall, [])
    mixed = recall.mix(logits.clone(), [evidence, nothing], stop)
    assert torch.equal(mixed[1], logits[1])

    p = logits[0].double().softmax(-1)
    gate = recall.gate
    assert gate is not None
    inputs = np.zeros(N_INPUTS)
    for k, each in enumerate(evidence.predictions):
        if len(each.ids):
            best = int(each.fractions.argmax())
            inputs[k * N_FEATURES : (k + 1) * N_FEATURES] = [
                np.log1p(each.length), np.log1p(each.count), each.fractions[best], np.log1p(len(each.ids)),
                max(float(p[each.ids[best]].log()), -14), len(each.ids) == 1, int(p.argmax()) == each.ids[best],
            ]  # fmt: skip
    inputs[-2:] = float(-(p * p.log()).sum()), float(p.max().log())
    hidden = torch.nn.functional.silu(
        torch.tensor((inputs - gate.mean) / gate.scale) @ torch.tensor(gate.hidden_weight).double()
        + torch.tensor(gate.hidden_bias)
    )
    weights = hidden @ torch.tensor(gate.output_weight).double() + torch.tensor(gate.output_bias)
    weights[1:][[not len(each.ids) for each in evidence.predictions]] = -torch.inf
    weights = weights.softmax(-1)
    weights = torch.cat([weights[:1].clamp(min=1e-4), weights[1:]])
    weights[1:] *= (1 - weights[0]) / weights[1:].sum()
    expected = weights[0] * p
    p_stop = p[stop].sum()
    for weight, each in zip(weights[1:], evidence.predictions, strict=True):
        expected[each.ids] += (1 - p_stop) * weight * torch.tensor(each.fractions)
    longest = max(evidence.predictions, key=lambda each: each.length)
    goes_on = longest.fractions[longest.ids % 2 == 0].sum() if context[-1] % 2 == 0 else 0.0
    assert evidence.goes_on == pytest.approx(goes_on)
    expected[stop] = p[stop] * max(1 - goes_on, 1e-4)
    expected /= expected.sum()
    assert not set(stop.tolist()) & {i for each in evidence.predictions for i in each.ids.tolist()}
    torch.testing.assert_close(mixed[0].double().softmax(-1), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)


def test_a_text_does_not_end_in_a_word_that_goes_on_where_it_was_found() -> None:
    """Even ids are parts of words. Short matches say nothing."""
    recall = Recall(trained_gate(), workspace=Sources([[1, 2, 4, 6, 8, 3], [1, 2, 4, 6, 9, 3, 3, 3]], VOCAB))

    def goes_on(*ids: int) -> float:
        return SampleText(RequestText(ids), ALL_TEXT).find(recall, []).goes_on

    assert goes_on(1, 2, 4) == 1  # 6 follows
    assert goes_on(1, 2, 4, 6) == 0.5  # 8 or 9
    assert goes_on(1, 2) == goes_on(30, 2, 4) == 0  # matches of two tokens
    assert goes_on(6, 9, 3) == 0  # the text does not end in a word
    assert goes_on() == goes_on(30) == 0
    before_a_word = SampleText(RequestText((1, 2, 4), is_in_word=True), ALL_TEXT)
    assert before_a_word.find(recall, []).goes_on == 0  # what follows the cursor goes on with the word
    stop = torch.tensor([0])
    evidence = SampleText(RequestText((1, 2, 4, 6)), ALL_TEXT).find(recall, [])
    ends, goes = (
        recall.mix(torch.zeros(1, VOCAB), [each], stop)[0] for each in (evidence._replace(goes_on=0.0), evidence)
    )
    torch.testing.assert_close(goes[0], ends[0] + math.log(0.5))
    assert torch.equal(goes[1:], ends[1:])


def test_tokens_that_cannot_be_generated_stay_so() -> None:
    recall = Recall(trained_gate(), corpus=Sources([[1, 2, 3, 4, 5]] * 3, VOCAB))
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = -torch.inf
    evidence = SampleText(RequestText((1, 2, 3)), ALL_TEXT).find(recall, [])
    mixed = recall.mix(logits, [evidence], torch.tensor([0]))
    assert mixed[0, 7] == -torch.inf and torch.isfinite(mixed[0, [1, 4]]).all()


# The engine


@pytest.fixture(scope="module")
def completer(small_run: Path) -> Completer:
    return Completer.load(small_run)


def recall_of(small_run: Path, tokenizer_size: int, completer: Completer, *, is_sure: bool = False) -> Recall:
    texts = [document.text for document in read_documents(small_run / "corpus", "train")]
    documents = [completer.tokenizer.encode(text) for text in texts]
    return Recall(trained_gate(3, is_sure=is_sure), corpus=Sources(documents, tokenizer_size))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_no_token_and_save_steps(temperature: float, small_run: Path, completer: Completer) -> None:
    engine = completer.engine
    assert isinstance(engine, Engine)
    recall = recall_of(small_run, completer.tokenizer.vocab_size, completer, is_sure=True)
    completer.use_recall(recall)
    text = next(iter(read_documents(small_run / "corpus", "train"))).text
    request = InfillRequest(text[:120], text[-40:])
    sampling = SamplingParams(temperature=temperature, top_p=1.0, seed=4, logprobs=0)
    found, steps = [], []
    for has_drafts in (True, False):
        engine._has_drafts = has_drafts
        before = engine.stats.steps
        found.append(completer.complete([request], CompletionParams(sampling=sampling, max_new_tokens=60))[0])
        steps.append(engine.stats.steps - before)
    engine._has_drafts = True
    completer.use_recall(Recall())
    assert found[0].tokens == found[1].tokens
    assert found[0].total_logprob == pytest.approx(found[1].total_logprob, abs=1e-2)
    assert steps[0] < steps[1]


def test_scores_are_the_logprobs_of_generated_tokens(small_run: Path, completer: Completer) -> None:
    """In infilling too, where the text before the hole is not the end of the prompt."""
    completer.use_recall(recall_of(small_run, completer.tokenizer.vocab_size, completer))
    text = next(iter(read_documents(small_run / "corpus", "train"))).text
    sampling = SamplingParams(temperature=1.0, top_p=1.0, seed=1, logprobs=0)
    for request in (InfillRequest(text[:150]), InfillRequest(text[:80], text[130:200])):
        prompt = completer.cut_prompt(request, 30)
        params = CompletionParams(sampling=sampling, max_new_tokens=30)
        alone = completer.complete([prompt], params)[0]
        again = completer.complete([prompt, prompt], params)
        assert [each.tokens for each in again] == [alone.tokens] * 2
        bits = completer.score([(prompt, alone.tokens)])[0]
        assert -bits * np.log(2) == pytest.approx(alone.total_logprob, abs=1e-2)
        completer.use_recall(Recall())
        other = completer.score([(prompt, alone.tokens)])[0]
        assert abs(other - bits) > 0.1
        completer.use_recall(recall_of(small_run, completer.tokenizer.vocab_size, completer))
    completer.use_recall(Recall())


def test_prompt_logprobs_are_mixed_too(small_run: Path, completer: Completer) -> None:
    completer.use_recall(recall_of(small_run, completer.tokenizer.vocab_size, completer))
    ids = completer.tokenizer.encode(next(iter(read_documents(small_run / "corpus", "train"))).text)[:50]
    params = CompletionParams(sampling=GREEDY, max_new_tokens=4, has_prompt_logprobs=True)
    job = completer.submit(ids, params)
    completer.finish([job])
    bits = completer.score([(ids[:1], ids[1:])])[0]
    assert sum(each.logprob for each in job.request.prompt_logprobs) == pytest.approx(-bits * np.log(2), abs=1e-2)
    completer.use_recall(Recall())


def test_what_does_not_fit_the_context_is_recalled(completer: Completer) -> None:
    """The definition is farther away than the model can see."""
    name = "zq_unheard_of_name(argument)"
    text = f"def {name}:\n    pass\n" + "x = 1\n" * 300 + "y = zq_unheard"
    assert len(completer.tokenizer.encode(text)) > completer.context_length
    completer.use_recall(Recall(Gate.load()))
    params = CompletionParams(sampling=GREEDY, max_new_tokens=24)
    assert completer.complete([InfillRequest(text)], params)[0].text.startswith("_of_name(argument)")
    completer.use_recall(Recall())
    assert not completer.complete([InfillRequest(text)], params)[0].text.startswith("_of_name(argument)")


def test_windows_score_each_token_of_a_document_once(completer: Completer) -> None:
    ids = completer.tokenizer.encode("value = 1\n" * 120)
    scored = scored_windows(completer, ids, 400)
    assert [i for rest in scored.rests for i in rest] == ids[:400]
    assert all(
        len(p.ids) + len(r) <= completer.context_length for p, r in zip(scored.prompts, scored.rests, strict=True)
    )


# Fitting


def test_a_fitted_gate_is_better_than_the_model_with_any_sources(small_run: Path, completer: Completer) -> None:
    documents = list(read_documents(small_run / "corpus", "train"))
    ids = [completer.tokenizer.encode(document.text) for document in documents]
    corpus, workspace = Sources(ids[::2], 384), Sources(ids[:12], 384)
    scored = [(scored_windows(completer, each, 400), workspace) for each in ids[1::2] * 3]
    tokens: list[int] = []
    rows = record_rows(completer, corpus, scored, tokens.append)
    assert len(rows) == sum(tokens) == sum(each.n_tokens for each, _ in scored)
    alone = -sum(row.logprob for row in rows) / np.log(2)
    assert alone == pytest.approx(sum(score_document(completer, each) for each, _ in scored), rel=1e-3)
    gate = fit_gate(rows)
    costs = {}
    for name, recall in {
        "corpus": Recall(gate, corpus=corpus),
        "workspace": Recall(gate, workspace=workspace),
        "request": Recall(gate),
        "all": Recall(gate, corpus=corpus, workspace=workspace),
    }.items():
        completer.use_recall(recall)
        costs[name] = sum(score_document(completer, each) for each, _ in scored)
    completer.use_recall(Recall())
    assert max(costs.values()) < alone
    assert costs["all"] < min(costs["corpus"], costs["request"])


def test_too_few_rows_are_refused() -> None:
    row = GateRow(np.zeros(N_INPUTS, np.float32), np.zeros(N_PREDICTIONS), -1.0)
    with pytest.raises(ConfigError, match="10 held-out tokens are too few"):
        fit_gate([row] * 10)


def test_halves_share_no_document(small_run: Path, completer: Completer) -> None:
    documents = list(read_documents(small_run / "corpus", "train"))
    sides = split_repositories(completer, documents, 0)
    names = [[d.name for half in side for d in half.documents] for side in sides]
    assert not set(names[0]) & set(names[1])
    assert sorted(names[0] + names[1]) == sorted(document.name for document in documents)


# Files and commands


def test_damaged_gates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        Gate.load(tmp_path / "gate.safetensors")
    trained_gate().save(tmp_path / "gate.safetensors")
    assert np.array_equal(Gate.load(tmp_path / "gate.safetensors").mean, trained_gate().mean)
    data = (tmp_path / "gate.safetensors").read_bytes()
    (tmp_path / "gate.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidFileError, match="damaged"):
        Gate.load(tmp_path / "gate.safetensors")
    gate = trained_gate()
    gate.mean[0] = np.nan
    gate.save(tmp_path / "gate.safetensors")
    with pytest.raises(CodekilnError, match="damaged"):
        Gate.load(tmp_path / "gate.safetensors")


def test_a_run_has_a_gate_and_its_results(small_run: Path) -> None:
    assert Gate.load(run_gate(small_run)).mean.shape == (N_INPUTS,)
    result = read_stage_record(small_run, "recall")["result"]
    bits, infilling = result["bits_per_byte"], result["infilling"]
    assert bits["documents"] and infilling["problems"]
    for setting in ("request", "corpus", "workspace"):
        assert bits[setting]["difference"]["value"] == pytest.approx(bits[setting]["value"] - bits["alone"], abs=1e-9)
        assert 0 <= infilling[setting]["value"]["value"] <= 1


def test_commands_recall_the_training_documents(small_run: Path, tmp_path: Path) -> None:
    text = next(iter(read_documents(small_run / "corpus", "train"))).text
    at = text.index("\n", 150) + 1  # where a token ends
    prompt, rest = text[:at], text[at:]
    options = ("--temperature", "0", "--max-new-tokens", "30", "--json")
    answers = {}
    for recall in ((), ("--recall",)):
        done = codekiln("complete", small_run, prompt, *options, *recall)
        assert done.returncode == 0, done.stderr
        answers[recall] = json.loads(done.stdout)["completions"][0]["text"]
    assert answers["--recall",].startswith(rest[:60]) and not answers[()].startswith(rest[:60])
    shutil.copytree(small_run / "model", tmp_path / "model")
    done = codekiln("complete", tmp_path / "model", "a = 1\n" * 5, *options, "--recall")  # a model without an index
    assert done.returncode == 0, done.stderr


def test_cut_prompts_keep_all_text(completer: Completer) -> None:
    text = "value = 12\n" * 200
    cut = completer.cut_prompt(InfillRequest(text, "end = 3\n"), 8)
    assert len(cut.ids) < cut.n_tokens
    assert list(cut.text.before) == completer.tokenizer.encode(text)
    assert [list(each) for each in cut.text.others] == [completer.tokenizer.encode("end = 3\n")]
