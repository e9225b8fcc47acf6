"""Generating: batched and alone, streamed and whole, stops, contexts, sampling, and what is never drawn."""

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
from codekiln.tokenizer.infill import infill_prompt
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


def test_rows_answer_together_as_they_do_alone(completer: Completer) -> None:
    together = completer.complete(REQUESTS, max_new_tokens=30, sampling=GREEDY)
    alone = [completer.complete([request], max_new_tokens=30, sampling=GREEDY)[0] for request in REQUESTS]
    assert together == alone


def test_a_prompt_read_with_a_cache_goes_on_as_it_does_without(completer: Completer) -> None:
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
    assert_greedy(lambda ids: completer.model.lm_head(completer.model(ids)), prompt, tokens, tolerance=1e-3)


def test_pieces_joined_are_the_answer(completer: Completer) -> None:
    for stop in ([], ["\n"], ["ret", "return x"]):
        texts = [""] * len(REQUESTS)
        answers = {}
        for piece in completer.stream(REQUESTS, max_new_tokens=30, sampling=GREEDY, stop=stop):
            texts[piece.index] += piece.text
            if piece.completion is not None:
                answers[piece.index] = piece.completion
        assert texts == [answers[i].text for i in range(len(REQUESTS))]


def test_an_answer_ends_before_the_first_stop_string(completer: Completer) -> None:
    whole = completer.complete([REQUESTS[0]], max_new_tokens=40, sampling=GREEDY)[0].text
    for stop in (whole[5:8], whole[3:4], whole[-3:]):
        found = completer.complete([REQUESTS[0]], max_new_tokens=40, sampling=GREEDY, stop=[stop, "never written"])[0]
        assert found.text == whole[: whole.index(stop)]
        assert found.is_finished


def test_an_answer_at_the_limit_is_said_to_be_cut(completer: Completer) -> None:
    answer = completer.complete([REQUESTS[0]], max_new_tokens=2, sampling=GREEDY)[0]
    assert not answer.is_finished and answer.completion_tokens == 2


def test_the_prompt_is_the_layout_and_keeps_what_is_nearest_to_the_hole(completer: Completer) -> None:
    tokenizer = completer.tokenizer
    request = InfillRequest("a = 1\n", "\nb = 2\n")
    layout = infill_prompt(tokenizer, tokenizer.encode(request.prompt), tokenizer.encode(request.suffix or ""))
    assert completer.prompt_ids(request, 16) == [tokenizer.eos_id, *layout]

    lines = [f"value_{n} = {n}\n" for n in range(500)]
    long = InfillRequest("".join(lines), "".join(reversed(lines)))
    ids = completer.prompt_ids(long, 16)
    assert len(ids) <= completer.context_length - 16
    assert ids[0] == tokenizer.fim_suffix  # not a document's beginning
    prefix = ids.index(tokenizer.fim_prefix)
    assert prefix > 10 and (long.suffix or "").startswith(tokenizer.decode(ids[:prefix]))
    left = tokenizer.decode(ids[prefix:])
    assert long.prompt.endswith(left) and left.startswith("value_")


def test_text_cannot_say_a_control_token(completer: Completer) -> None:
    ids = completer.prompt_ids(InfillRequest("<|fim_middle|><|endoftext|>", "<|fim_prefix|>"), 16)
    tokenizer = completer.tokenizer
    assert [ids.count(t) for t in (tokenizer.fim_middle, tokenizer.fim_prefix, tokenizer.eos_id)] == [1, 1, 1]


def test_holes_are_filled_left_to_right_and_each_sees_the_ones_before(completer: Completer) -> None:
    parts = ["def f(a):\n    b = ", "\n    c = ", "\n    return c\n"]
    answers = completer.infill(parts, max_new_tokens=12, sampling=GREEDY)
    first = completer.complete([InfillRequest(parts[0], parts[1] + parts[2])], max_new_tokens=12, sampling=GREEDY)[0]
    before = parts[0] + first.text + parts[1]
    second = completer.complete([InfillRequest(before, parts[2])], max_new_tokens=12, sampling=GREEDY)[0]
    assert answers == [first, second]


def test_ids_that_mean_nothing_are_never_drawn(tokenizer: Tokenizer) -> None:
    config = KilnConfig(1, 32, 2, 1, 16, 64, 512, 128)  # 128 rows more than the tokenizer has ids
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))
    completer = Completer(model.eval(), tokenizer)
    for seed in range(5):  # an id without bytes would be an index error
        assert completer.complete([InfillRequest("x")], max_new_tokens=50, sampling=SamplingParams(2.0, 1.0, seed))[
            0
        ].completion_tokens
    # Control tokens that begin a hundred ids behind the merges leave a gap, which no text has.
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
        sampling=SamplingParams(2.0, 1.0, 0),
    )
    assert all(step.token < 384 and step.token != 5 for step in steps)


def test_a_larger_tokenizer_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    model = Transformer(KilnConfig(1, 32, 2, 1, 16, 64, 128, 64))
    with pytest.raises(ValueError, match="tokenizer has 384 tokens, the model 128 rows"):
        Completer(model, tokenizer)


def test_too_many_new_tokens_are_refused(completer: Completer) -> None:
    with pytest.raises(ValueError, match="128 new tokens: ask for fewer than half of the context of 256"):
        completer.complete([InfillRequest("x")], max_new_tokens=128, sampling=GREEDY)
    with pytest.raises(ValueError, match="a prompt of 250 tokens and 10 new ones exceed the model's context of 256"):
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


def test_characters_are_sent_whole(completer: Completer) -> None:
    from codekiln.generate.complete import StreamDecoder

    text = StreamDecoder(["STOP"])
    sent = [text.add(bytes([byte])) for byte in "aé日😀 STO STOP".encode()]
    assert "".join(sent) == "aé日😀 STO "
    assert text.is_stopped and text.rest() == ""
    torn = StreamDecoder([])
    assert torn.add(b"a\xf0\x9f") == "a"
    assert torn.rest() == "\ufffd"


def test_the_nucleus_is_the_smallest_that_reaches_its_probability() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample(logits, SamplingParams(1.0, 0.8), generator) for _ in range(2000)])
    counts = torch.bincount(drawn, minlength=4)
    assert counts[2:].sum() == 0
    assert counts[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)
    assert sample(logits, GREEDY, generator).tolist() == [0]


def test_the_smallest_numbers_that_are_allowed_draw_the_most_probable() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 40
    for sampling in (
        SamplingParams(1e-40),
        SamplingParams(1e-4),
        SamplingParams(1e-5, 1e-50),
        SamplingParams(1.0, 1e-50),
    ):
        assert torch.equal(sample(logits, sampling, torch.Generator()), logits.argmax(dim=-1))


def test_sampling_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 3"):
        SamplingParams(temperature=3)
    with pytest.raises(ValueError, match="top_p is 0"):
        SamplingParams(top_p=0)
