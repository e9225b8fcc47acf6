"""The tokenizer: round trips, control tokens, the layout with a hole, and Transformers as the reference."""

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from codekiln.tokenizer.bpe import CONTROL_TOKENS, Tokenizer, TokenizerPlan, hugging_face_configs, train_tokenizer
from codekiln.tokenizer.infill import N_LAYOUT_TOKENS, infill_prompt, training_layout
from tests.small import write_tree

ADVERSARIAL = [
    "",
    " ",
    " " * 1000,
    "\t  \t   x",
    "a\r\nb\rc",
    "\ufeffx",
    "\x00\x01\x1f\x7f\x85\u2028\u2029",
    "é é ﬁ 日本語 👩‍👩‍👧 \U0010ffff \ufffe",
    "Ġ Ċ ĉ",
    "x\n\n\n\ny\n",
    *CONTROL_TOKENS,
    "'<|endoftext|>'  <|fim_middle|>\n<|pad|>",
]


def reference(tokenizer: Tokenizer, folder: Path) -> transformers.PreTrainedTokenizerFast:
    """The same file in Transformers, with its control tokens taken as text as ours are."""
    tokenizer.save(folder / "tokenizer.json")
    for name, record in hugging_face_configs(tokenizer, 256).items():
        (folder / name).write_text(json.dumps(record), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ADVERSARIAL, ids=lambda text: ascii(text)[:30])
def test_every_text_round_trips_and_becomes_no_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.encode_batch([text, text + "x"]) == [ids, tokenizer.encode(text + "x")]


@given(st.text())
@settings(max_examples=200)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


@given(
    st.lists(st.sampled_from(["<|", "|>", "endoftext", "pad", "fim_", "prefix", "middle", "<|endoftext|>", " ", "\n"]))
)
def test_spellings_of_control_tokens_stay_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    ids = tokenizer.encode("".join(parts))
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.decode(ids) == "".join(parts)


def test_ids_and_text_equal_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = reference(tokenizer, tmp_path)
    texts = [path.read_text(encoding="utf-8") for path in write_tree(tmp_path / "code").rglob("*.py")]
    texts += [Path(__file__).read_text(encoding="utf-8"), *ADVERSARIAL]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == text
    assert theirs.convert_tokens_to_ids(list(CONTROL_TOKENS)) == sorted(tokenizer.control_ids)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.end_of_text, tokenizer.pad)


def test_tokens_cross_spaces_and_never_a_newline(tokenizer: Tokenizer) -> None:
    assert any(b" " in token.strip() for token in tokenizer.token_bytes)
    for token in tokenizer.token_bytes:
        assert b"\n" not in token or not token.strip(b"\n")


def test_control_ids_stand_above_the_merges(tokenizer: Tokenizer) -> None:
    assert sorted(tokenizer.control_ids) == list(range(384 - len(CONTROL_TOKENS), 384))
    assert tokenizer.vocab_size == 384


def test_a_corpus_full_of_control_tokens_teaches_none_of_them() -> None:
    text = "".join(f"{token}\n" for token in CONTROL_TOKENS) * 300 + "value = other + value\n" * 50
    trained = train_tokenizer(TokenizerPlan(vocab_size=280), [text])
    for token in CONTROL_TOKENS:
        assert not trained.control_ids & set(trained.encode(token))


def test_training_is_deterministic(tokenizer: Tokenizer, tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    texts = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    again = train_tokenizer(TokenizerPlan(vocab_size=384), texts)
    assert again.token_bytes == tokenizer.token_bytes


def test_no_token_is_longer_than_its_bound(tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(write_tree(tmp_path).rglob("*.py"))]
    bound, free = (train_tokenizer(TokenizerPlan(vocab_size=384, max_token_bytes=n), texts) for n in (8, 64))
    assert max(len(token) for token in bound.token_bytes) <= 8 < max(len(token) for token in free.token_bytes)


def test_bad_plans_and_files_are_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size is 200: 256 bytes and 5 control tokens need at least 261"):
        TokenizerPlan(vocab_size=200)
    with pytest.raises(ValueError, match="the sample to train the tokenizer on is empty"):
        train_tokenizer(TokenizerPlan(vocab_size=300), [])
    with pytest.raises(ValueError, match=r"merges for 26. ids and the recipe asks for 4096"):
        train_tokenizer(TokenizerPlan(vocab_size=4096), ["abab"])
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a readable tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match=r"other.json has no <\|endoftext\|>"):
        Tokenizer.load(tmp_path / "other.json")


def test_the_prompt_is_the_training_layout_up_to_the_middle(tokenizer: Tokenizer) -> None:
    left, middle, right = (tokenizer.encode(text) for text in ("def f():\n", "    return 1", "\n\nf()\n"))
    layout = training_layout(tokenizer, left, middle, right, middle_weight=3.0)
    prompt = infill_prompt(tokenizer, left, right)
    assert layout.ids == [*prompt, *middle, tokenizer.end_of_text]
    assert len(layout.ids) == len(left) + len(middle) + len(right) + N_LAYOUT_TOKENS
    sentinels = {tokenizer.fim_prefix, tokenizer.fim_suffix, tokenizer.fim_middle}
    told = [float(token not in sentinels) for token in prompt]
    assert layout.weights == told + [3.0] * (len(middle) + 1)
    assert tokenizer.decode(layout.ids) == "\n\nf()\ndef f():\n    return 1"
