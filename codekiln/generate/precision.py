"""Which precision a model is served with: the fastest that predicts the same tokens as float32.

Int8 weights are several times faster on CPUs. Whether a model bears them is measured on held-out text: the sources of
Codekiln itself, which no model was trained on. The result is kept in the user's cache, because it takes seconds for a large
model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path

import torch

from codekiln.files import write_json
from codekiln.generate.model_cache import model_cache_path
from codekiln.model.cache import HAS_KERNELS, BatchAttention, KVPool
from codekiln.model.chunk import Chunk
from codekiln.model.decoder import Decoder, Precision
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer

MIN_AGREEMENT = 0.99  # of the most likely tokens with those of float32
SAMPLE_TOKENS = 1_024
SEQUENCE_TOKENS = 256
SAMPLE_FILES = ("generate/complete.py", "generate/engine.py", "serve/service.py", "tokenizer/bpe.py")


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision, and the fraction of tokens on which int8 agrees with float32; None if it was not measured."""

    precision: Precision
    agreement: float | None = None


def choose_precision(model: Transformer, tokenizer: Tokenizer, folder: Path) -> PrecisionChoice:
    """bfloat16 on GPUs. On CPUs int8 if numba is installed and it agrees with float32 on 99% of held-out tokens.

    `folder` is the model directory; the choice is measured again if one of its files changes.
    """
    if not model.embedding.weight.is_cpu:
        return PrecisionChoice("bfloat16")
    if not HAS_KERNELS:
        return PrecisionChoice("float32")
    path = model_cache_path("precision", folder, MIN_AGREEMENT, torch.__version__).with_suffix(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known: dict[str, Precision] = {"int8": "int8", "float32": "float32"}
        return PrecisionChoice(known[record["precision"]], record["int8_agreement"])
    except (OSError, ValueError, KeyError, TypeError):
        choice = _measure(model, tokenizer)
    write_json(path, {"precision": choice.precision, "int8_agreement": choice.agreement})
    return choice


def _measure(model: Transformer, tokenizer: Tokenizer) -> PrecisionChoice:
    sequences = list(held_out_sequences(tokenizer, model.config.context_length))
    expected = _predictions(Decoder(model, "float32"), sequences)
    agreement = measure_agreement(make_decoder(model, "int8"), sequences, expected)
    return PrecisionChoice("int8" if agreement >= MIN_AGREEMENT else "float32", agreement)


def measure_agreement(decoder: Decoder, sequences: list[list[int]], expected: torch.Tensor) -> float:
    """The fraction of places in which a decoder predicts the token that is expected."""
    return float((_predictions(decoder, sequences) == expected).double().mean())


@torch.inference_mode()
def _predictions(decoder: Decoder, sequences: list[list[int]]) -> torch.Tensor:
    """The most likely token after each token of all sequences."""
    pool = KVPool(decoder.config, max(map(len, sequences)), like=decoder.embedding)
    found = []
    for ids in sequences:
        attend = BatchAttention(pool, [Chunk(len(ids), 0, 0)])
        hidden = decoder.hidden_states(torch.tensor(ids), torch.arange(len(ids)), attend)
        found.append(decoder.logits(hidden).argmax(-1))
    return torch.cat(found)


def held_out_sequences(tokenizer: Tokenizer, context_length: int) -> Iterator[list[int]]:
    """Token ids of Codekiln's sources, in sequences."""
    length = min(SEQUENCE_TOKENS, context_length)
    n_left = SAMPLE_TOKENS
    for name in SAMPLE_FILES:
        text = package_files("codekiln").joinpath(name).read_text(encoding="utf-8")
        ids = [*tokenizer.bos_ids, *tokenizer.encode_document(text)]
        for start in range(0, len(ids) - length, length):
            if n_left <= 0:
                return
            yield ids[start : start + length]
            n_left -= length
