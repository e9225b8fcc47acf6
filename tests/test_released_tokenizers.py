"""Tokenizers of released code models, compared with the software that their makers used."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import transformers

from codekiln.errors import InvalidFileError
from codekiln.files import read_json, write_json
from codekiln.generate.complete import Completer, InfillRequest
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import UNUSED_BYTES, Tokenizer, bytes_to_unicode
from codekiln.tokenizer.codegen import WHITESPACE, codegen25_tokenizer, load_gpt2_merges
from codekiln.tokenizer.infill import PSM, CodeGen2
from codekiln.train.objectives import Chunk, FillInTheMiddle
from tests.released import save_code_llama, save_deepseek_coder, save_starcoder2, train_sentencepiece
from tests.small import ROOT, TINY, printed_rng

pytestmark = pytest.mark.process

TEXTS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "codekiln").rglob("*.py"))]
ODD = (
    "a\tb  \r\n\t\tx = 'Ünï 日本 ٣'\n\n\n   \n<s> <|endoftext|> <0x41>"
    + " " * 40
    + "z õ ÿ \x00\x7f\ufeff\U0001f469\u200d\U0001f467"
)
PIECES = (
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "def",
    "x1",
    "12",
    "(",
    "):",
    "é",
    "日本",
    "õ",
    "'",
    "'s",
    "<fim_prefix>",
    "\x00",
    "\U0001f600",
)


def random_texts(n: int = 200) -> list[str]:
    rng = printed_rng()
    return ["".join(rng.choices(PIECES, k=rng.randrange(1, 40))) for _ in range(n)]


def completer(tokenizer: Tokenizer) -> Completer:
    return Completer.of_model(Transformer(dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size)), tokenizer)


@pytest.fixture(scope="module")
def codegen25() -> Tokenizer:
    return codegen25_tokenizer(load_gpt2_merges())


def test_codegen25_equals_tiktoken(codegen25: Tokenizer) -> None:
    """Its makers released a `tiktoken` encoding: GPT-2's ranks, then those of the runs of white space."""
    ranks = {codegen25.token_bytes[number]: number for number in range(50_256)}
    ranks |= {run.encode(): 50_257 + k for k, run in enumerate(WHITESPACE)}
    gpt2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    theirs = tiktoken.Encoding("codegen25", pat_str=gpt2, mergeable_ranks=ranks, special_tokens={})
    for text in (*TEXTS, ODD, *random_texts(), *(f"{' ' * n}x{' ' * n}\n{chr(9) * n}y" for n in range(1, 70))):
        assert codegen25.encode(text) == theirs.encode(text, disallowed_special=())
    assert codegen25.vocab_size == 51_200


def test_ids_of_codegen25_are_the_published_ones(codegen25: Tokenizer) -> None:
    """Ids that the released tokenizer gives."""
    text = "int add(int a, int b) { return a + b; }\nπ"
    assert codegen25.encode(text) == [
        600, 751, 7, 600, 257, 11, 493, 275, 8, 1391, 1441, 257, 1343, 275, 26, 1782, 198, 46_582,
    ]  # fmt: skip
    found = codegen25.infill_format
    assert isinstance(found, CodeGen2)
    prompt = found.prompt(codegen25.encode("prefix"), codegen25.encode("suffix"))
    assert prompt == [40_290, 51_199, 37_333, 844, 50_256, 50_317, 51_199]
    assert [codegen25.special_id(f"<fim_{part}>") for part in ("prefix", "suffix", "middle")] == [
        50_295,
        50_297,
        50_296,
    ]
    example = found.example([1, 2], [3], [4])
    assert example.ids == [1, 2, 51_199, 4, 50_256, 50_317, 51_199, 3, codegen25.special_id("<eom>")]
    assert example.loss_weights == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert codegen25.special_id("<eom>") in codegen25.stop_token_ids


def test_code_llama_equals_sentencepiece(tmp_path: Path) -> None:
    theirs = train_sentencepiece(TEXTS, 1500)
    save_code_llama(tmp_path / "tokenizer.json", theirs)
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in (*TEXTS, ODD, *random_texts()):
        if "▁" not in text:  # SentencePiece takes this character for a space
            assert ours.encode_document(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == text
    for data in (b"\xff\xfe", b"ab\xc0\n", "a▁▁b ▁".encode(), bytes(range(256))):
        assert ours.decode_bytes(ours.encode(data)) == data


def test_prompt_of_code_llama_is_that_of_its_makers(tmp_path: Path) -> None:
    """The prefix begins with the space of every document. The suffix does not: they encode it after a character that they
    remove again."""
    theirs = train_sentencepiece(TEXTS, 1500)
    save_code_llama(tmp_path / "tokenizer.json", theirs)
    ours = completer(Tokenizer.load(tmp_path / "tokenizer.json"))
    begin, pre, suf, mid = (ours.tokenizer.special_id(token) for token in ("<s>", "▁<PRE>", "▁<SUF>", "▁<MID>"))
    before, after = "def f(x):\n    ", " return y\n"
    newline = theirs.encode("\n")
    suffix = theirs.encode("\n" + after)[len(newline) :]
    assert ours.prompt_ids(InfillRequest(before, after), 8) == [begin, pre, *theirs.encode(before), suf, *suffix, mid]
    assert ours.prompt_ids(InfillRequest(before), 8) == [begin, *theirs.encode(before)]
    assert {ours.tokenizer.special_id("▁<EOT>"), ours.tokenizer.special_id("</s>")} <= ours.tokenizer.stop_token_ids


def test_text_never_becomes_an_infilling_token_of_code_llama(tmp_path: Path) -> None:
    """The merges of this vocabulary produce `▁<PRE>` from " <PRE>"."""
    save_code_llama(tmp_path / "tokenizer.json", train_sentencepiece(TEXTS, 1500), is_leaking=True)
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    assert ours.special_id("▁<PRE>") in ours._reference.encode("a <PRE> b").ids, "the leak that this test needs is gone"
    for text in ("a <PRE> b", " <PRE>", "▁<PRE>", " <SUF> <MID>x <EOT>", "<PRE> <PRE>"):
        ids = ours.encode(text)
        assert ours.special_ids.isdisjoint(ids) and ours.decode(ids) == text


def test_training_and_prompts_have_the_same_layout(tmp_path: Path) -> None:
    """Families with a start token begin every prompt with it, so every training example does."""
    for name in ("deepseek", "llama"):
        (tmp_path / name).mkdir()
    save_deepseek_coder(tmp_path / "deepseek" / "tokenizer.json", TEXTS, 1500)
    save_code_llama(tmp_path / "llama" / "tokenizer.json", train_sentencepiece(TEXTS, 1500))
    for name in ("deepseek", "llama"):
        tokenizer = Tokenizer.load(tmp_path / name / "tokenizer.json")
        assert isinstance(tokenizer.infill_format, PSM)
        ids = np.array(tokenizer.encode(TEXTS[3])[:200])
        for is_start, seed in itertools.product((True, False), range(10)):
            chunk = Chunk(ids, is_start=is_start, is_end=False)
            objective = FillInTheMiddle(fim_rate=1.0, fim_spm_rate=0.0)
            example = objective(chunk, tokenizer, np.random.default_rng(seed))
            at = example.ids.index(tokenizer.infill_format.middle_id)
            assert example.ids[:2] == [tokenizer.start_id, tokenizer.infill_format.prefix_id]
            cut = example.ids.index(tokenizer.infill_format.suffix_id)
            prefix, suffix = example.ids[2:cut], example.ids[cut + 1 : at]
            assert example.ids[1 : at + 1] == tokenizer.infill_format.prompt(prefix, suffix)
            assert len(example.ids) <= len(ids) + objective.max_added_tokens
            assert example.loss_weights[0] == 0.0


def test_code_llama_loads_in_transformers_with_equal_ids(tmp_path: Path) -> None:
    save_code_llama(tmp_path / "tokenizer.json", train_sentencepiece(TEXTS, 1500))
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS[:20]:
        assert ours.encode_document(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_deepseek_coder_equals_transformers(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_deepseek_coder(path, TEXTS, 1500)
    ours = Tokenizer.load(path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    unused = {bytes_to_unicode()[byte] for byte in UNUSED_BYTES}
    texts = [text for text in TEXTS if unused.isdisjoint(text)]
    assert len(texts) > len(TEXTS) // 2
    for text in (*texts, "日本語 x=3.14e-10\r\n\r\n\tيونيكود"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    found = ours.infill_format
    assert isinstance(found, PSM)
    spelled = "<｜fim▁begin｜>def f(x):\n<｜fim▁hole｜>\n    return x\n<｜fim▁end｜>"
    request = InfillRequest("def f(x):\n", "\n    return x\n")
    expected = theirs.encode("<｜begin▁of▁sentence｜>" + spelled, add_special_tokens=False)
    assert completer(ours).prompt_ids(request, 8) == expected
    assert ours.eos_id == theirs.convert_tokens_to_ids("<｜end▁of▁sentence｜>")


def test_characters_that_spell_unused_bytes_are_text(tmp_path: Path) -> None:
    """DeepSeek-Coder has "õ" as an added token, for the byte F5. The letter in a text is another thing, and comes back."""
    path = tmp_path / "tokenizer.json"
    save_deepseek_coder(path, TEXTS, 1500)
    ours = Tokenizer.load(path)
    for text in (ODD, "õ÷øùúûüýþÿÀÁ", *random_texts()):
        assert ours.decode(ours.encode(text)) == text
    assert ours.decode_bytes(ours.encode(bytes(UNUSED_BYTES))) == bytes(UNUSED_BYTES)
    record = read_json(path)
    record["added_tokens"] = [token for token in record["added_tokens"] if len(token["content"]) > 1]
    without = Tokenizer(record, origin="without")
    assert without.decode(without.encode(b"a\xffb")) == "a\ufffdb"


def test_starcoder2_equals_transformers(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_starcoder2(path, TEXTS, 1500)
    ours = Tokenizer.load(path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    request = InfillRequest("def f(x):\n", "\n    return x\n")
    spelled = "<fim_prefix>def f(x):\n<fim_suffix>\n    return x\n<fim_middle>"
    assert completer(ours).prompt_ids(request, 8) == theirs.encode(spelled, add_special_tokens=False)
    assert {ours.special_id("<file_sep>"), ours.special_id("<fim_pad>")} < ours.stop_token_ids


def test_unsupported_byte_fallback_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_code_llama(path, train_sentencepiece(TEXTS, 1500))
    record = read_json(path)
    for changes, message in (
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}}, "Metaspace"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        (
            {"model": record["model"] | {"vocab": {"a": 0, "</s>": 1, "<s>": 2}, "merges": []}},
            "no token for 243 of the bytes",
        ),
    ):
        write_json(path, record | changes)
        with pytest.raises(InvalidFileError, match=message):
            Tokenizer.load(path)
