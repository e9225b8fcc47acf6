"""Answers from a server with OpenAI's completions API. Several requests are open at the same time."""

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import openai
from openai.types import Completion, CompletionChoice

from codekiln.errors import ConfigError, PromptError
from codekiln.evaluate.answers import Question, seed_of
from codekiln.evaluate.problems.problem import CompletionProblem, MultiTurnProblem, Problem
from codekiln.evaluate.problems.truncation import cut_before
from codekiln.evaluate.samples import Sample
from codekiln.evaluate.settings import Settings

MAX_OPEN = 8  # requests at the same time
MAX_SAMPLES = 8  # of one request
MAX_REFUSED = 8  # prompts before the first answer; more are no fault of the prompts
# A prompt that is too long, or that a filter of the server does not accept. Other statuses concern all requests.
PROMPT_STATUSES = (400, 413, 422)
MAX_STOP = 4  # strings, in OpenAI's API. Answers are truncated here in any case.
MAX_RETRIES = 4  # of a request to a busy server
SECONDS = 600.0  # for one request
SETTLE_SECONDS = 2.0  # for the other requests, after one that ends the evaluation
UNKNOWN_MODEL = "model_not_found"  # OpenAI's code, which some servers send with the status 400
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class _Answer:
    """The choices of a request, the tokens of all of them, and how many tokens of the prompt were cut off.

    Servers that do not count have 0 tokens.
    """

    choices: list[CompletionChoice]
    n_tokens: int
    n_cut_tokens: int


class EndpointAnswers:
    """Answers of a served model to one benchmark. The API key is read from OPENAI_API_KEY.

    Requests to busy servers are repeated after the time in their answer. Raises ConfigError for problems that need the
    probabilities of given texts, which not all servers return.
    """

    def __init__(self, url: str, model: str, benchmark: str, settings: Settings) -> None:
        key = os.environ.get(KEY_VARIABLE) or "none"
        self._client = partial(openai.OpenAI, base_url=url, api_key=key, max_retries=MAX_RETRIES, timeout=SECONDS)
        self._url, self._model, self._benchmark, self._settings = url, model, benchmark, settings

    def samples_per_job(self, problems: Sequence[Problem]) -> int:
        """How many samples one request asks for."""
        kinds = sorted({each.kind for each in problems} - {"completion", "multi-turn"})
        if kinds or self._settings.method == "reranking":
            what = f"problems of the kind {kinds[0]}" if kinds else "the method reranking"
            raise ConfigError(
                f"{self._benchmark}: an endpoint cannot answer {what}, which needs the probabilities of given texts: "
                "give a model directory instead"
            )
        return MAX_SAMPLES

    def answer(self, asked: Iterator[Question]) -> Iterator[tuple[Question, list[Sample]]]:
        """The samples for each question, as soon as they arrive. Those of a refused prompt have its error.

        Raises ConfigError if the cause is not one prompt, for example an unknown model, or if the first `MAX_REFUSED` questions
        are all refused.
        """
        open_: dict[Future[list[Sample]], Question] = {}
        with self._client() as client:
            try:
                yield from self._answer_all(client, asked, open_)
            except Exception:
                # The client does not close a connection that a request is just opening.
                wait(open_, timeout=SETTLE_SECONDS)
                raise

    def _answer_all(
        self, client: openai.OpenAI, asked: Iterator[Question], open_: dict[Future[list[Sample]], Question]
    ) -> Iterator[tuple[Question, list[Sample]]]:
        """`answer` with a client. `open_` has the questions that are being answered."""
        refused: list[tuple[Question, list[Sample]]] = []  # before the first answer
        has_answer = False
        while True:
            for question in itertools.islice(asked, MAX_OPEN - len(open_)):
                open_[self._submit(client, question)] = question
            if not open_:
                yield from refused
                return
            ended = wait(open_, return_when=FIRST_COMPLETED).done
            for done in sorted(ended, key=lambda each: each.exception() is not None):  # so that no answer is lost
                question, samples = open_.pop(done), done.result()
                if samples[0].error and not has_answer:
                    refused.append((question, samples))
                    if len(refused) == MAX_REFUSED:
                        raise ConfigError(f"{self._url} refused all of the first problems: {samples[0].error}")
                    continue
                has_answer = True
                yield question, samples
                yield from refused
                refused.clear()

    def _submit(self, client: openai.OpenAI, question: Question) -> Future[list[Sample]]:
        """Answers a question in a thread, which does not keep the process alive: Ctrl-C need not wait for open requests."""
        answered: Future[list[Sample]] = Future()

        def answer() -> None:
            try:
                answered.set_result(self._answer(client, question))
            except BaseException as failure:  # raised again where the result is read
                answered.set_exception(failure)

        threading.Thread(target=answer, name="request", daemon=True).start()
        return answered

    def _answer(self, client: openai.OpenAI, question: Question) -> list[Sample]:
        problem = question.problem
        try:
            if problem.kind == "multi-turn":
                return [self._turns(client, question, problem)]
            assert problem.kind == "completion"
            return self._completions(client, question, problem)
        except PromptError as refused:
            return question.refused(self._benchmark, str(refused))

    def _completions(self, client: openai.OpenAI, question: Question, problem: CompletionProblem) -> list[Sample]:
        with_suffix = self._settings.method == "infilling" and problem.suffix is not None
        suffix = problem.suffix if with_suffix else None
        found = self._complete(client, question, problem, self._settings.hint + problem.prompt, suffix)
        # The server counts the tokens of all choices together.
        rest = found.n_tokens % question.n
        samples = []
        for k, each in enumerate(found.choices):
            answer = problem.truncate(self._before_stop(each.text), with_suffix=with_suffix)
            sample = question.sample(self._benchmark, k, [answer], [each])
            n_tokens = found.n_tokens // question.n + (k < rest)
            samples.append(replace(sample, n_tokens=n_tokens, n_cut_tokens=found.n_cut_tokens))
        return samples

    def _turns(self, client: openai.OpenAI, question: Question, problem: MultiTurnProblem) -> Sample:
        answers: list[str] = []
        found: list[_Answer] = []
        for turn in range(problem.n_turns):
            text = self._settings.hint + (problem.history(answers) if turn else problem.prompt)
            found.append(self._complete(client, question, problem, text, None, turn))
            answers.append(problem.truncate(self._before_stop(found[-1].choices[0].text)))
        sample = question.sample(self._benchmark, 0, answers, [each.choices[0] for each in found])
        return replace(
            sample,
            n_tokens=sum(each.n_tokens for each in found),
            n_cut_tokens=max(each.n_cut_tokens for each in found),
        )

    def _before_stop(self, text: str) -> str:
        """The text before the stop strings of the settings, not all of which the server gets."""
        return cut_before(text, self._settings.stop)

    def _complete(
        self,
        client: openai.OpenAI,
        question: Question,
        problem: CompletionProblem | MultiTurnProblem,
        prompt: str,
        suffix: str | None,
        turn: int = 0,
    ) -> "_Answer":
        settings = self._settings
        optional: dict[str, Any] = {} if suffix is None else {"suffix": suffix}
        try:
            answer = client.completions.create(
                model=self._model,
                prompt=prompt,
                max_tokens=settings.max_new_tokens or problem.max_new_tokens,
                temperature=question.temperature,
                top_p=settings.top_p if question.temperature else 1.0,
                n=question.n,
                stop=[*problem.stop, *settings.stop][:MAX_STOP] or None,
                seed=seed_of(settings, self._benchmark, question, turn) % 2**31,
                **optional,
            )
        except openai.APIStatusError as refused:
            is_of_prompt = refused.status_code in PROMPT_STATUSES and refused.code != UNKNOWN_MODEL
            kind = PromptError if is_of_prompt else ConfigError
            raise kind(f"{self._url} refused a problem ({refused.status_code}): {refused.message[:500]}") from None
        except openai.APIConnectionError as failure:
            raise ConfigError(
                f"cannot reach {self._url} ({failure.__cause__ or failure}): is the server running?"
            ) from None
        return _Answer(self._choices(answer, question.n), *_usage(answer))

    def _choices(self, answer: object, n: int) -> list[CompletionChoice]:
        """The choices of an answer in order. Not all servers answer as the API asks."""
        choices = answer.choices if isinstance(answer, Completion) else None
        if not isinstance(choices, list) or any(not isinstance(each.text, str) for each in choices):
            raise ConfigError(
                f"{self._url} did not answer with a completion: is this the address of the API, with /v1?"
            )
        if len(choices) != n:
            raise ConfigError(
                f"{self._url} answered with {len(choices)} choices, and {n} are needed: "
                "if the server does not support the parameter n, draw one sample with -n 1"
            )
        return sorted(choices, key=lambda each: each.index)


def _usage(answer: Completion) -> tuple[int, int]:
    """The tokens that were generated, and those that were cut off the prompt, which Codekiln's server counts in a field of its
    own; 0 if they were not counted."""
    usage = answer.usage
    details = None if usage is None else usage.prompt_tokens_details
    counts = (getattr(usage, "completion_tokens", 0), getattr(details, "cut_tokens", 0))
    n_tokens, n_cut_tokens = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return n_tokens, n_cut_tokens
