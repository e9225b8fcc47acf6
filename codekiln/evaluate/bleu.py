"""Smoothed sentence BLEU as in CodeXGLUE's code-to-text, which published docstring scores use.

BLEU-4 of one sentence (Papineni et al. 2002), with 1 added to the matches and the n-grams of n > 1 (Lin and Och 2004), and a
brevity penalty whose lengths are 1 more. Other libraries differ: an empty prediction does not score 0 here.
"""

import math
import re
import sys
from collections import Counter
from xml.sax.saxutils import unescape

MAX_N = 4
_WORD_OR_SIGN = re.compile(r"\w+|[^\s\w]")
# The tokenization of mteval-v11a: signs, then "." and "," not between digits, then "-" after a digit.
_SEPARATED = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


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
    """Lower-case tokens: split at signs first, then as mteval-v11a does."""
    text = " ".join(_WORD_OR_SIGN.findall(text.strip().lower()))
    text = unescape(text.replace("<skipped>", ""), {"&quot;": '"'})
    text = f" {text} ".lower()
    for pattern, replacement in _SEPARATED:
        text = pattern.sub(replacement, text)
    return text.split()
