"""Fills the holes of documents: several candidates for each hole, post-processed and ranked.

`infill` does so for many documents at once. `infill_jobs` is for a caller that runs the engine itself: it submits jobs and
waits for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, assert_never

from codekiln.generate.complete import (
    DEFAULT_MAX_NEW_TOKENS,
    Completer,
    Completion,
    CompletionParams,
    InfillRequest,
)
from codekiln.generate.context import RepositoryContext
from codekiln.generate.copying import N_REDRAWS
from codekiln.generate.postprocess import Cursor, PostProcessing
from codekiln.generate.work import Work, run_all
from codekiln.tokenizer.infill import N_SENTINELS_PER_SPAN, CausalMask

# By the log-probability of the candidate, as a sum or per token, or by that of the text after the hole.
RankBy = Literal["total", "mean", "suffix"]
SUFFIX_CHARACTERS = 200  # of the text after the hole, that are scored
LEFT_TO_RIGHT_NOTE = "this model cannot see the text after the hole: it continues the text before it"


@dataclass(frozen=True)
class HoledDocument:
    """The text of a document between its holes, and other files of its repository."""

    parts: tuple[str, ...]
    context: RepositoryContext | None = None


@dataclass(frozen=True, kw_only=True)
class InfillSettings:
    """How holes are filled. `params.n` is the number of candidates for each hole; `params.stop_when` is not used.

    Candidates that the token limit cut off are drawn again, up to `n_retries` times, with other seeds. Greedy ones are not:
    they would be the same. Candidates that copied too much of the training documents are drawn again too, and then dropped.
    """

    params: CompletionParams
    postprocessing: PostProcessing = field(default_factory=PostProcessing)
    rank_by: RankBy = "mean"
    n_retries: int = 0


@dataclass(frozen=True)
class Candidate:
    """The text for a hole after post-processing, and the completion that it was before.

    `suffix_logprob` is the log-probability of the text after the hole, if candidates are ranked by it.
    """

    text: str
    completion: Completion
    suffix_logprob: float | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the model, a stop string or the mode ended it, and not the token limit."""
        return self.completion.finish_reason == "stop"


@dataclass(frozen=True)
class FilledHole:
    """The candidates, the best first, without duplicates. There is none if all were dropped, `n_withheld` of them because
    they copied too much of the training documents."""

    candidates: tuple[Candidate, ...]
    n_withheld: int = 0

    @property
    def text(self) -> str:
        """The text of the best candidate; empty if there is none."""
        return self.candidates[0].text if self.candidates else ""


@dataclass(frozen=True)
class FilledDocument:
    """A document and its holes, in order. `notes` are for the user."""

    parts: tuple[str, ...]
    holes: tuple[FilledHole, ...]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The document with the best candidate in each hole."""
        return self.parts[0] + "".join(hole.text + part for hole, part in zip(self.holes, self.parts[1:], strict=True))


def infill(
    completer: Completer,
    documents: Sequence[HoledDocument],
    settings: InfillSettings,
    on_filled: Callable[[int, FilledDocument], None] | None = None,
) -> list[FilledDocument]:
    """The documents with their holes filled, in order. `on_filled` is called as soon as one is, with its number.

    All documents are filled at the same time. Raises ConfigError if a prompt cannot be completed.
    """
    found: dict[int, FilledDocument] = {}
    for number, filled in run_all(completer, (infill_jobs(completer, document, settings) for document in documents)):
        found[number] = filled
        if on_filled is not None:
            on_filled(number, filled)
    return [found[number] for number in range(len(documents))]


def infill_jobs(completer: Completer, document: HoledDocument, settings: InfillSettings) -> Work[FilledDocument]:
    """Fills the holes of a document from left to right. Each hole sees the best candidates of the ones before it.

    Yields lists of jobs. When all of them are finished, `next` continues. The engine may run other jobs at the same time. If
    the caller gives up, it cancels the jobs of the last list. Raises ConfigError if a prompt cannot be completed.
    """
    holes: list[FilledHole] = []
    parts = document.parts
    for k in range(len(parts) - 1):
        prefix = parts[0] + "".join(hole.text + part for hole, part in zip(holes, parts[1:], strict=False))
        suffix = "".join(parts[k + 1 :])
        request = InfillRequest(prefix, suffix if completer.can_infill else None, document.context)
        prompt = _prompt_of_many_holes(completer, document, holes, settings.params)
        holes.append((yield from _fill_hole(completer, request, prompt or request, suffix, settings)))
    is_blind = not completer.can_infill and any(part.strip() for part in parts[1:])
    notes = [LEFT_TO_RIGHT_NOTE] if is_blind else []
    notes += (
        f"hole {k} is left empty, because what the model wrote was too long a copy of training documents"
        for k, hole in enumerate(holes, start=1)
        if hole.n_withheld and not hole.candidates
    )
    return FilledDocument(parts, tuple(holes), tuple(notes))


def _fill_hole(
    completer: Completer,
    request: InfillRequest,
    prompt: InfillRequest | list[int],
    suffix: str,
    settings: InfillSettings,
) -> Work[FilledHole]:
    """The ranked candidates for the hole after `request.prompt`. `prompt` is what the model completes."""
    cursor, sampling = Cursor.of(request.prompt, suffix, settings.postprocessing), settings.params.sampling
    params = replace(
        settings.params,
        sampling=replace(sampling, logprobs=sampling.logprobs or 0),
        stop=(*settings.params.stop, *cursor.stop),
        n=1 if sampling.is_greedy else settings.params.n,
        stop_when=cursor,
    )
    found: list[Completion] = []
    for attempt in range(1 if sampling.is_greedy else 1 + max(settings.n_retries, N_REDRAWS)):
        reasons = ("stop",) if attempt <= settings.n_retries else ("stop", "length")
        ended = [each for each in found if each.finish_reason in reasons]
        if attempt and len(ended) == len(found):
            break
        again = replace(params.sampling, seed=sampling.seed + attempt)
        job = completer.submit(prompt, replace(params, sampling=again, n=params.n - len(ended)))
        yield [job]
        found = ended + [job.completions[index] for index in sorted(job.completions)]
    written = [each for each in found if not each.is_withheld]
    candidates = [Candidate(cursor.postprocess(each.text), each) for each in written]
    candidates = [each for each in candidates if each.text or not each.completion.text]
    if settings.rank_by == "suffix" and candidates:
        candidates = yield from _with_suffix_logprobs(completer, request, suffix, candidates, params.cache_key)
    distinct: dict[str, Candidate] = {}
    for each in sorted(candidates, key=partial(_rank, settings.rank_by), reverse=True):
        distinct.setdefault(each.text, each)
    return FilledHole(tuple(distinct.values()), len(found) - len(written))


def _rank(rank_by: RankBy, candidate: Candidate) -> tuple[bool, float]:
    match rank_by:
        case "total":
            score = candidate.completion.total_logprob
        case "mean":
            score = candidate.completion.mean_logprob
        case "suffix":
            assert candidate.suffix_logprob is not None
            score = candidate.suffix_logprob
        case _:
            assert_never(rank_by)
    return candidate.is_ended, score


def _with_suffix_logprobs(
    completer: Completer, request: InfillRequest, suffix: str, candidates: Sequence[Candidate], cache_key: str
) -> Work[list[Candidate]]:
    """The candidates with the log-probability of the beginning of the suffix after them, read from left to right.

    At the end of a document it is that of the end-of-text token. The ids of the suffix are the same for all candidates.
    """
    tokenizer, limit = completer.tokenizer, completer.max_new_tokens_limit // 2
    tail = tokenizer.encode(suffix[:SUFFIX_CHARACTERS])[:limit] if suffix else [tokenizer.eos_id]
    texts = list(dict.fromkeys(each.text for each in candidates))
    ids = {text: tokenizer.encode(text)[:limit] for text in texts}
    room = len(tail) + max(map(len, ids.values()))
    before = completer.prompt_ids(replace(request, suffix=None), room)
    scores: dict[str, float] = {}
    for group in filter(None, (texts[:1], texts[1:])):  # the others find the prompt of the first in the cache
        jobs = {text: completer.submit_score([*before, *ids[text]], tail, cache_key) for text in group}
        yield list(jobs.values())
        scores |= {text: sum(each.logprob for each in job.request.prompt_logprobs) for text, job in jobs.items()}
    return [replace(each, suffix_logprob=scores[each.text]) for each in candidates]


def _prompt_of_many_holes(
    completer: Completer, document: HoledDocument, holes: Sequence[FilledHole], params: CompletionParams
) -> list[int] | None:
    """The prompt for the next hole in InCoder's format, with all holes and the text of the ones before (section 2.2).

    Each of them ends with the end of mask, which stays in the prompt. None if the format has one hole only, if there is only
    one, or if the document with its holes does not fit the context.
    """
    tokenizer, infill_format = completer.tokenizer, completer.tokenizer.infill_format
    n_holes = len(document.parts) - 1
    if not isinstance(infill_format, CausalMask) or not 1 < n_holes < len(infill_format.mask_ids) - 1:
        return None
    max_new_tokens = params.max_new_tokens or completer.limit_new_tokens(DEFAULT_MAX_NEW_TOKENS)
    context = completer.context_ids(document.context, max_new_tokens)
    first, *rest = document.parts
    parts = [[*context.header, *tokenizer.encode_document(first)], *map(tokenizer.encode, rest)]
    prompt = [*(context.before or tokenizer.bos_ids), *infill_format.document_with_holes(parts)]
    for mask_id, hole in zip(infill_format.mask_ids, holes, strict=False):
        prompt += [mask_id, *tokenizer.encode(hole.text), infill_format.end_of_mask_id]
    n_left = n_holes - len(holes)
    if len(prompt) + n_left * (max_new_tokens + N_SENTINELS_PER_SPAN) > completer.context_length:
        return None
    return [*prompt, infill_format.mask_ids[len(holes)]]
