"""Tokenizers and configs in the form in which models were released, made by other software where that is possible."""

import io
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

from codekiln.files import JsonObject, read_json, write_json
from codekiln.tokenizer.bpe import UNUSED_BYTES, bytes_to_unicode

# The fields of config.json in which CodeGen2 differs from CodeGen.
CODEGEN2 = {
    "architectures": ["CodeGenForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_codegen.CodeGenConfig",
        "AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM",
    },
}
CODE_LLAMA_TOKENS = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
STARCODER2_TOKENS = (
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<repo_name>",
    "<file_sep>",
)
DEEPSEEK_TOKENS = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>",
)  # fmt: skip


def train_sentencepiece(texts: list[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """A vocabulary as Llama 2's: BPE with byte fallback, digits on their own, and a space before the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.99,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def save_code_llama(path: Path, processor: sentencepiece.SentencePieceProcessor, *, is_leaking: bool = False) -> None:
    """A `tokenizer.json` as Code Llama's, of the vocabulary of a SentencePiece model.

    If it is leaking, merges produce the infilling tokens from text, because their beginnings are tokens too.
    """
    vocab = {processor.id_to_piece(number): number for number in range(processor.get_piece_size())}
    special = ["<unk>", "<s>", "</s>", *CODE_LLAMA_TOKENS]
    if is_leaking:
        pieces = [
            *"".join(CODE_LLAMA_TOKENS),
            *(token[:n] for token in CODE_LLAMA_TOKENS for n in range(2, len(token))),
        ]
        vocab |= {piece: len(vocab) + k for k, piece in enumerate(dict.fromkeys(p for p in pieces if p not in vocab))}
    first = len(vocab)
    vocab |= {token: first + k for k, token in enumerate(CODE_LLAMA_TOKENS)}
    texts = {token: n for token, n in vocab.items() if not token.startswith("<0x")}
    merges = generate_merges(texts, skip_tokens=special)
    if is_leaking:
        merges = [
            *dict.fromkeys((token[:n], token[n]) for token in CODE_LLAMA_TOKENS for n in range(1, len(token))),
            *merges,
        ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    record: JsonObject = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[token], "content": token} | flags for token in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    write_json(path, record)


def save_byte_level(
    path: Path, texts: list[str], vocab_size: int, special: tuple[str, ...], splitters: list[Any]
) -> None:
    """A `tokenizer.json` of a byte-level BPE that splits text as given, trained by the library `tokenizers`."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splitters, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special), initial_alphabet=list(bytes_to_unicode().values()), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.save(str(path))


def save_starcoder2(path: Path, texts: list[str], vocab_size: int) -> None:
    """A `tokenizer.json` as StarCoder2's and Granite's: single digits, then GPT-2's rule."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    rule = pre_tokenizers.Split(
        Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"
    )
    save_byte_level(path, texts, vocab_size, STARCODER2_TOKENS, [digits, rule])


def save_deepseek_coder(path: Path, texts: list[str], vocab_size: int) -> None:
    """A `tokenizer.json` as DeepSeek-Coder's. The bytes that are in no UTF-8 are not in its vocabulary but added tokens."""
    patterns = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
    splitters = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    digits = pre_tokenizers.Digits(individual_digits=True)
    save_byte_level(path, texts, vocab_size, DEEPSEEK_TOKENS, [*splitters, digits])
    record = read_json(path)
    unused = [bytes_to_unicode()[byte] for byte in UNUSED_BYTES]
    kept = [token for token in record["model"]["vocab"] if token not in unused]
    record["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    flags = record["added_tokens"][0]
    ordinary = [flags | {"content": token, "normalized": True, "special": False} for token in unused]
    added = [*ordinary, *record["added_tokens"]]
    record["added_tokens"] = [token | {"id": len(kept) + number} for number, token in enumerate(added)]
    write_json(path, record)
