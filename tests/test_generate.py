"""Text in, text out: batched and single, streamed and whole, stop strings, holes and context limits."""

import json
from pathlib import Path

import pytest
import torch

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest, StreamDecoder
from codekiln.generate.engine import Engine
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.model.configs import KilnConfig
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import require_spm


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
    together = completer.complete(REQUESTS, CompletionParams(max_new_tokens=30, sampling=GREEDY))
    alone = [
        completer.complete([request], CompletionParams(max_new_tokens=30, sampling=GREEDY))[0] for request in REQUESTS
    ]
    assert together == alone


def test_streamed_equals_whole(completer: Completer) -> None:
    for stop in ((), ("\n",), ("ret", "return x")):
        texts = [""] * len(REQUESTS)
        answers = {}
        for piece in completer.stream(REQUESTS, CompletionParams(max_new_tokens=30, sampling=GREEDY, stop=stop)):
            texts[piece.index] += piece.text
            if piece.completion is not None:
                answers[piece.index] = piece.completion
        assert texts == [answers[i].text for i in range(len(REQUESTS))]


def test_completion_ends_before_the_first_stop_string(completer: Completer) -> None:
    whole = completer.complete([REQUESTS[0]], CompletionParams(max_new_tokens=40, sampling=GREEDY))[0].text
    for stop in (whole[5:8], whole[3:4], whole[-3:]):
        found = completer.complete(
            [REQUESTS[0]], CompletionParams(max_new_tokens=40, sampling=GREEDY, stop=(stop, "never written"))
        )[0]
        assert found.text == whole[: whole.index(stop)]
        assert found.finish_reason == "stop"


def test_completion_at_the_token_limit_has_finish_reason_length(completer: Completer) -> None:
    answer = completer.complete([REQUESTS[0]], CompletionParams(max_new_tokens=2, sampling=GREEDY))[0]
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


def test_ids_without_text_are_never_sampled(tokenizer: Tokenizer) -> None:
    config = KilnConfig(
        n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_head=16, d_ff=64, vocab_size=512, context_length=128
    )  # 128 rows more than the tokenizer has ids
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))
    completer = Completer.of_model(model.eval(), tokenizer)
    for seed in range(5):  # an id beyond the tokenizer would be an index error
        assert completer.complete(
            [InfillRequest("x")],
            CompletionParams(max_new_tokens=50, sampling=SamplingParams(temperature=2.0, top_p=1.0, seed=seed)),
        )[0].completion_tokens
    # Special tokens a hundred ids after the merges leave a gap of ids without text.
    record = json.loads(json.dumps(tokenizer.record))
    for token in record["added_tokens"]:
        token["id"] += 100
    apart = Completer.of_model(model, Tokenizer(record, origin="packed"))
    sampling = SamplingParams(temperature=2.0, top_p=1.0, seed=0)
    assert isinstance(apart.engine, Engine)
    tokens = {token for row in apart.engine.generate([[1]] * 4, sampling, max_new_tokens=100) for token in row}
    assert len(tokens) > 10 and not tokens & {*range(379, 479), *range(484, 512)}


def test_tokenizer_larger_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    model = Transformer(
        KilnConfig(
            n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_head=16, d_ff=64, vocab_size=128, context_length=64
        )
    )
    with pytest.raises(ValueError, match=r"384.*128"):
        Completer.of_model(model, tokenizer)


def test_too_many_new_tokens_are_refused(completer: Completer) -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens must be between 1 and 127 .*128"):
        completer.complete([InfillRequest("x")], CompletionParams(max_new_tokens=128, sampling=GREEDY))
    with pytest.raises(ValueError, match=r"250 tokens and 10 new .*256"):
        completer.engine.add([1] * 250, GREEDY, max_new_tokens=10)


def test_incomplete_characters_are_held_back() -> None:
    text = StreamDecoder(["STOP"])
    sent = [text.add(bytes([byte])) for byte in "aé日😀 STO STOP".encode()]
    assert "".join(sent) == "aé日😀 STO "
    assert text.is_stopped and text.rest() == ""
    incomplete = StreamDecoder([])
    assert incomplete.add(b"a\xf0\x9f") == "a"
    assert incomplete.rest() == "\ufffd"
