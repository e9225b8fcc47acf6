"""How a tokenizer cuts a text: for people to look at, and to compare tokenizers."""

from collections import Counter

import numpy as np

from codekiln.files import JsonObject
from codekiln.tokenizer.bpe import Tokenizer

N_LONGEST = 10
_VISIBLE = {"\n": "⏎", "\t": "→"}


def statistics(tokenizer: Tokenizer, data: bytes) -> JsonObject:
    """Counts and rates of a text, and its longest tokens with their counts."""
    ids = tokenizer.encode(data)
    n_lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    counts = Counter(ids)
    longest = sorted(counts, key=lambda token: (-len(tokenizer.token_bytes[token]), token))[:N_LONGEST]
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes": len(data),
        "lines": n_lines,
        "tokens": len(ids),
        "tokens_per_byte": len(ids) / max(1, len(data)),
        "bytes_per_token": len(data) / max(1, len(ids)),
        "tokens_per_line": len(ids) / max(1, n_lines),
        "longest": [{"token": printable(tokenizer.token_bytes[i]), "count": counts[i]} for i in longest],
    }


def token_texts(tokenizer: Tokenizer, data: bytes) -> list[str]:
    """The tokens of a text in order, printable. A character that several tokens share is shown as bytes in each."""
    return [printable(tokenizer.token_bytes[i]) for i in tokenizer.encode(data)]


def printable(token: bytes) -> str:
    """A token to print: line ends as ⏎, tabs as →, and invalid UTF-8 or control characters as their bytes."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return _as_bytes(token)
    return "".join(_VISIBLE.get(c, c if c.isprintable() else _as_bytes(c.encode())) for c in text)


def boundary_agreement(first: Tokenizer, second: Tokenizer, data: bytes) -> float:
    """The fraction of the first tokenizer's token boundaries in a text that are boundaries of the second one too."""
    cuts, others = (set(np.cumsum(each.byte_lengths[each.encode(data)]).tolist()) for each in (first, second))
    return len(cuts & others) / max(1, len(cuts))


def _as_bytes(data: bytes) -> str:
    return "".join(f"‹{byte:02x}›" for byte in data)
