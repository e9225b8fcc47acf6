"""Texts of other files that editors send with a request."""

from collections.abc import Sequence

from codekiln.generate.complete import Completer, InfillRequest

CONTEXT_FRACTION = 0.5  # of the model's context, for texts of other files


def infill_request(completer: Completer, prefix: str, suffix: str | None, texts: Sequence[str]) -> InfillRequest:
    """The text around a hole, with texts of other files before the prefix. The last text is the most relevant one.

    Texts that exceed half of the context are left out, from the first one on. The order does not change, so that the prompt
    begins as an earlier one did.
    """
    n_left = int(completer.context_length * CONTEXT_FRACTION)
    kept: list[str] = []
    for text in reversed(texts):
        n_left -= len(completer.tokenizer.encode(text))
        if n_left < 0:
            break
        kept.insert(0, text + "\n")
    return InfillRequest("".join(kept) + prefix, suffix)
