"""Where a completion comes from: the stretches of its text that are verbatim in the training documents of a run."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codekiln.files import JsonObject
from codekiln.index.provenance import Verbatim, find_verbatim
from codekiln.index.search import Index, open_run_index
from codekiln.tokenizer.bpe import Tokenizer

CONTEXT_TOKENS = 128  # before a completion, in which a stretch may begin
CONTEXT_CHARACTERS = 8 * CONTEXT_TOKENS  # enough for so many tokens of nearly all code


@dataclass(frozen=True)
class Stretch:
    """Characters [start, stop) of a completion that are verbatim in the index. Offsets count Unicode code points."""

    start: int
    stop: int
    verbatim: Verbatim

    @property
    def n_tokens(self) -> int:
        """Tokens of the completion."""
        return self.verbatim.stop - self.verbatim.start

    def to_record(self, text: str, first: int = 0) -> JsonObject:
        """The stretch as JSON. `text` is the completion, and `first` where it begins in the text that a client gets."""
        return {
            "start": first + self.start,
            "stop": first + self.stop,
            "text": text[self.start : self.stop],
            "n_tokens": self.n_tokens,
            "n_prompt_tokens": self.verbatim.n_before,
            "count": self.verbatim.count,
            "licenses": self.verbatim.licenses,
            "sources": [vars(source.name) for source in self.verbatim.sources],
        }


class Tracer:
    """Finds stretches of completions in an index. Its methods can be called from several threads."""

    def __init__(self, index: Index, tokenizer: Tokenizer) -> None:
        self.index, self._tokenizer = index, tokenizer

    def context_ids(self, before: str | Sequence[int]) -> list[int]:
        """The last ids of the text, or of the ids, that a completion continues."""
        ids = self._tokenizer.encode(before[-CONTEXT_CHARACTERS:]) if isinstance(before, str) else before
        return list(ids[-CONTEXT_TOKENS:])

    def find(self, text: str, tokens: Sequence[int] = (), context: Sequence[int] = ()) -> list[Stretch]:
        """The stretches of a completion, in order. `context` are the ids before it.

        `tokens` are those that were generated. If the text does not begin as they do, its own are used: post-processing may
        change a text.
        """
        ids, offsets = self._place(tokens)
        if not ids or not self._tokenizer.decode(ids).startswith(text):
            ids, offsets = self._place(self._tokenizer.encode(text))
        ids = [token for token, start in zip(ids, offsets, strict=False) if start < len(text)]
        found = find_verbatim(self.index, [*context, *ids], n_context=len(context))
        return [Stretch(offsets[each.start], min(offsets[each.stop], len(text)), each) for each in found]

    def _place(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """The tokens that have text, and where each begins in it; the last offset is the end.

        A character of several tokens belongs to the last of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        ids = [token for token in tokens if self._tokenizer.token_bytes[token]]
        offsets = [0]
        for token in ids:
            offsets.append(offsets[-1] + len(decoder.decode(self._tokenizer.token_bytes[token])))
        return ids, offsets


def open_tracer(run: Path, tokenizer_path: Path) -> Tracer:
    """The tracer of a run or an indexed folder. `tokenizer_path` is the file of the tokenizer that the model writes with.

    Raises CodekilnError if the index is missing, damaged or of another run.
    """
    return Tracer(open_run_index(run, tokenizer_path), Tokenizer.load(tokenizer_path))
