"""Smoothed sentence BLEU as in CodeXGLUE's code-to-text, which published docstring scores use.

BLEU-4 of one sentence (Papineni et al. 2002), with 1 added to the matches and the n-grams of n > 1 (Lin and Och 2004), and a
brevity penalty whose lengths are 1 more. Other libraries differ: an empty prediction does not score 0 here.
"""

import math
import re
import sys
from collections import Counter

MAX_N = 4
_TOKEN = re.compile(r"[^\W_]+|_|[^\s\w]")


def sentence_bleu(reference: str, prediction: str) -> float:
    """BLEU of a prediction, between 0 and 1."""
    expected, found = _tokens(reference), _tokens(prediction)
    total = 0.0
    for n in range(1, MAX_N + 1):
        matches = sum((_ngrams(expected, n) & _ngrams(found, n)).values())
        n_ngrams = max(len(found) - n + 1, 0)
        extra = 1 if n > 1 else 0
        total += math.log(matches + extra + sys.float_info.min) - math.log(n_ngrams + extra + sys.float_info.min)
    return math.exp(total / MAX_N + min(0.0, 1 - (len(expected) + 1) / (len(found) + 1)))


def _ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def _tokens(text: str) -> list[str]:
    """Lower-case words of letters and digits, and signs: what CodeXGLUE's two tokenizers leave together."""
    return _TOKEN.findall(text.lower())
