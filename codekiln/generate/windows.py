"""A text in windows of the model's context, so that each of its tokens is scored once."""

from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.generate.complete import Completer, CutPrompt
from codekiln.generate.recall import RequestText


@dataclass(frozen=True)
class Scored:
    """Each prompt, and the tokens after it that are scored."""

    prompts: tuple[CutPrompt, ...]
    rests: tuple[list[int], ...]

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.rests))


def scored_windows(completer: Completer, ids: Sequence[int], max_tokens: int | None = None) -> Scored:
    """The first `max_tokens` tokens of a text, in windows that overlap by a half.

    Without a token that begins texts, the first token has no probability, and is not scored.
    """
    half = completer.context_length // 2
    ids = ids[:max_tokens]
    prompts: list[CutPrompt] = []
    rests: list[list[int]] = []
    for start in range(0, len(ids), half):
        before = list(ids[max(0, start - half) : start]) if start else completer.tokenizer.bos_ids
        rest = list(ids[start : start + half])
        if not before:
            before, rest = rest[:1], rest[1:]
        if rest:
            prompts.append(CutPrompt(before, len(before), RequestText(tuple(ids[:start] or before))))
            rests.append(rest)
    return Scored(tuple(prompts), tuple(rests))


def score_document(completer: Completer, scored: Scored) -> float:
    """Bits of the scored tokens."""
    return sum(completer.score(list(zip(scored.prompts, scored.rests, strict=True))))
