"""How a tokenizer cuts a text, for people to see and tokenizers to be compared by."""

from collections import Counter

import numpy as np

from codekiln.files import JsonObject
from codekiln.tokenizer.bpe import Tokenizer

N_LONGEST = 10


def statistics(tokenizer: Tokenizer, data: bytes) -> JsonObject:
    """Counts and rates of a text, and its longest pieces with how often they occur."""
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
        "longest": [{"piece": printable(tokenizer.token_bytes[i]), "times": counts[i]} for i in longest],
    }


def token_texts(tokenizer: Tokenizer, data: bytes) -> list[str]:
    """The text's tokens in order, as `printable`; a character that several tokens share appears as its bytes in each."""
    return [printable(tokenizer.token_bytes[i]) for i in tokenizer.encode(data)]


def printable(token: bytes) -> str:
    """A piece to be printed: line ends as ⏎, tabs as →, what is no text or would steer a terminal as its bytes."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return _spelled(token)
    return "".join(_VISIBLE.get(c, c if c.isprintable() else _spelled(c.encode())) for c in text)


def boundary_agreement(first: Tokenizer, second: Tokenizer, data: bytes) -> float:
    """The share of the first one's cuts in a text that the second one has too."""
    cuts, others = (set(np.cumsum(each.byte_lengths[each.encode(data)]).tolist()) for each in (first, second))
    return len(cuts & others) / max(1, len(cuts))


_VISIBLE = {"\n": "⏎", "\t": "→"}


def _spelled(data: bytes) -> str:
    return "".join(f"‹{byte:02x}›" for byte in data)
