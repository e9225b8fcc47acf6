"""Generation: batched and single, streamed and whole, stop strings, context limits, and sampling."""

import json
from pathlib import Path

import pytest
import torch

from codekiln.generate.complete import Completer, InfillRequest
from codekiln.generate.engine import generate
from codekiln.generate.sampling import GREEDY, SamplingParams, sample
from codekiln.model.configs import KilnConfig
from codekiln.model.transformer import Transformer, init_weights
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import require_spm
from tests.small import assert_greedy


@pytest.fixture(scope="module")
def completer(small_run: Path) -> Completer:
    return Completer.load(small_run)


REQUESTS = [
    InfillRequest("def open_door(name"),
    InfillRequest("x"),
    InfillRequest("def count(items):\n", "\n    return n\n"),
    InfillRequest("", "\n"),
]


def test_batched_equals_single(completer: Completer) -> None:
    together = completer.complete(REQUESTS, max_new_tokens=30, sampling=GREEDY)
    alone = [completer.complete([request], max_new_tokens=30, sampling=GREEDY)[0] for request in REQUESTS]
    assert together == alone


def test_cached_decoding_equals_uncached(completer: Completer) -> None:
    prompt = completer.prompt_ids(REQUESTS[0], 20)
    steps = generate(
        completer.model,
        [prompt],
        max_new_tokens=20,
        stop_token_ids=frozenset(),
        forbidden_token_ids=frozenset(),
        sampling=GREEDY,
    )
    tokens = [step.token for step in steps]
    assert len(tokens) == 20
    assert_greedy(completer.model, prompt, tokens, tolerance=1e-3)


def test_streamed_equals_whole(completer: Completer) -> None:
    for stop in ([], ["\n"], ["ret", "return x"]):
        texts = [""] * len(REQUESTS)
        answers = {}
        for piece in completer.stream(REQUESTS, max_new_tokens=30, sampling=GREEDY, stop=stop):
            texts[piece.index] += piece.text
            if piece.completion is not None:
                answers[piece.index] = piece.completion
        assert texts == [answers[i].text for i in range(len(REQUESTS))]


def test_completion_ends_before_the_first_stop_string(completer: Completer) -> None:
    whole = completer.complete([REQUESTS[0]], max_new_tokens=40, sampling=GREEDY)[0].text
    for stop in (whole[5:8], whole[3:4], whole[-3:]):
        found = completer.complete([REQUESTS[0]], max_new_tokens=40, sampling=GREEDY, stop=[stop, "never written"])[0]
        assert found.text == whole[: whole.index(stop)]
        assert found.finish_reason == "stop"


def test_completion_at_the_token_limit_has_finish_reason_length(completer: Completer) -> None:
    answer = completer.complete([REQUESTS[0]], max_new_tokens=2, sampling=GREEDY)[0]
    assert answer.finish_reason == "length" and answer.completion_tokens == 2


def test_prompt_keeps_the_text_nearest_to_the_hole(completer: Completer) -> None:
    tokenizer = completer.tokenizer
    request = InfillRequest("a = 1\n", "\nb = 2\n")
    spm = require_spm(tokenizer.infill_format)
    layout = spm.prompt(tokenizer.encode(request.prompt), tokenizer.encode(request.suffix or ""))
    assert completer.prompt_ids(request, 16) == [tokenizer.eos_id, *layout]

    lines = [f"value_{n} = {n}\n" for n in range(500)]
    long = InfillRequest("".join(lines), "".join(reversed(lines)))
    ids = completer.prompt_ids(long, 16)
    assert len(ids) <= completer.context_length - 16
    assert ids[0] == spm.suffix_id  # the beginning of the document is cut off
    prefix = ids.index(spm.prefix_id)
    assert prefix > 10 and (long.suffix or "").startswith(tokenizer.decode(ids[:prefix]))
    left = tokenizer.decode(ids[prefix:])
    assert long.prompt.endswith(left) and left.startswith("value_")


def test_special_tokens_in_requests_are_text(completer: Completer) -> None:
    ids = completer.prompt_ids(InfillRequest("<|fim_middle|><|endoftext|>", "<|fim_prefix|>"), 16)
    spm = require_spm(completer.tokenizer.infill_format)
    assert [ids.count(t) for t in (spm.middle_id, spm.prefix_id, spm.eos_id)] == [1, 1, 1]


def test_each_hole_sees_the_infills_before_it(completer: Completer) -> None:
    parts = ["def f(a):\n    b = ", "\n    c = ", "\n    return c\n"]
    answers = completer.infill(parts, max_new_tokens=12, sampling=GREEDY)
    first = completer.complete([InfillRequest(parts[0], parts[1] + parts[2])], max_new_tokens=12, sampling=GREEDY)[0]
    before = parts[0] + first.text + parts[1]
    second = completer.complete([InfillRequest(before, parts[2])], max_new_tokens=12, sampling=GREEDY)[0]
    assert answers == [first, second]


def test_ids_without_text_are_never_sampled(tokenizer: Tokenizer) -> None:
    config = KilnConfig(
        n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_head=16, d_ff=64, vocab_size=512, context_length=128
    )  # 128 rows more than the tokenizer has ids
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))
    completer = Completer(model.eval(), tokenizer)
    for seed in range(5):  # an id beyond the tokenizer would be an index error
        assert completer.complete(
            [InfillRequest("x")], max_new_tokens=50, sampling=SamplingParams(temperature=2.0, top_p=1.0, seed=seed)
        )[0].completion_tokens
    # Special tokens a hundred ids after the merges leave a gap of ids without text.
    record = json.loads(json.dumps(tokenizer.record))
    for token in record["added_tokens"]:
        token["id"] += 100
    apart = Tokenizer(record, origin="packed")
    assert set(range(379, 479)) <= Completer(model, apart)._forbidden_token_ids
    steps = generate(
        model,
        [[1]],
        max_new_tokens=100,
        stop_token_ids=frozenset(),
        forbidden_token_ids=frozenset(range(384, 512)) | {5},
        sampling=SamplingParams(temperature=2.0, top_p=1.0, seed=0),
    )
    assert all(step.token < 384 and step.token != 5 for step in steps)


def test_tokenizer_larger_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    model = Transformer(
        KilnConfig(
            n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_head=16, d_ff=64, vocab_size=128, context_length=64
        )
    )
    with pytest.raises(ValueError, match=r"384.*128"):
        Completer(model, tokenizer)


def test_too_many_new_tokens_are_refused(completer: Completer) -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens must be between 1 and 127 .*128"):
        completer.complete([InfillRequest("x")], max_new_tokens=128, sampling=GREEDY)
    with pytest.raises(ValueError, match=r"250 tokens and 10 new .*256"):
        list(
            generate(
                completer.model,
                [[1] * 250],
                max_new_tokens=10,
                stop_token_ids=frozenset(),
                forbidden_token_ids=frozenset(),
                sampling=GREEDY,
            )
        )


def test_incomplete_characters_are_held_back(completer: Completer) -> None:
    from codekiln.generate.complete import StreamDecoder

    text = StreamDecoder(["STOP"])
    sent = [text.add(bytes([byte])) for byte in "aé日😀 STO STOP".encode()]
    assert "".join(sent) == "aé日😀 STO "
    assert text.is_stopped and text.rest() == ""
    incomplete = StreamDecoder([])
    assert incomplete.add(b"a\xf0\x9f") == "a"
    assert incomplete.rest() == "\ufffd"


def test_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample(logits, SamplingParams(temperature=1.0, top_p=0.8), generator) for _ in range(2000)])
    counts = torch.bincount(drawn, minlength=4)
    assert counts[2:].sum() == 0
    assert counts[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)
    assert sample(logits, GREEDY, generator).tolist() == [0]


def test_smallest_temperature_and_top_p_are_greedy() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 40
    for sampling in (
        SamplingParams(temperature=1e-40),
        SamplingParams(temperature=1e-4),
        SamplingParams(temperature=1e-5, top_p=1e-50),
        SamplingParams(temperature=1.0, top_p=1e-50),
    ):
        assert torch.equal(sample(logits, sampling, torch.Generator()), logits.argmax(dim=-1))


def test_sampling_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 3"):
        SamplingParams(temperature=3)
    with pytest.raises(ValueError, match="top_p is 0"):
        SamplingParams(top_p=0)
