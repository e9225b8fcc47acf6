"""Answers from a server with OpenAI's completions API. Several requests are open at the same time."""

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any

import openai
from openai.types import Completion, CompletionChoice

from codekiln.errors import ConfigError
from codekiln.evaluate.answers import Question, seed_of
from codekiln.evaluate.problems.problem import CompletionProblem, MultiTurnProblem, Problem
from codekiln.evaluate.samples import Sample
from codekiln.evaluate.settings import Settings

MAX_OPEN = 8  # requests at the same time
MAX_SAMPLES = 8  # of one request
MAX_STOP = 4  # strings, in OpenAI's API. Answers are truncated here in any case.
MAX_RETRIES = 4  # of a request to a busy server
SECONDS = 600.0  # for one request
KEY_VARIABLE = "OPENAI_API_KEY"


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
        """The samples for each question, as soon as they arrive."""
        with self._client() as client:
            open_: dict[Future[list[Sample]], Question] = {}
            while True:
                for question in itertools.islice(asked, MAX_OPEN - len(open_)):
                    open_[self._submit(client, question)] = question
                if not open_:
                    return
                for done in wait(open_, return_when=FIRST_COMPLETED).done:
                    yield open_.pop(done), done.result()

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
        if problem.kind == "multi-turn":
            return [self._turns(client, question, problem)]
        assert problem.kind == "completion"
        with_suffix = self._settings.method == "infilling" and problem.suffix is not None
        suffix = problem.suffix if with_suffix else None
        choices = self._complete(client, question, problem, self._settings.hint + problem.prompt, suffix)
        return [
            question.sample(self._benchmark, k, [problem.truncate(each.text, with_suffix=with_suffix)], [each])
            for k, each in enumerate(choices)
        ]

    def _turns(self, client: openai.OpenAI, question: Question, problem: MultiTurnProblem) -> Sample:
        answers: list[str] = []
        found: list[CompletionChoice] = []
        for turn in range(problem.n_turns):
            text = self._settings.hint + (problem.history(answers) if turn else problem.prompt)
            found += self._complete(client, question, problem, text, None, turn)
            answers.append(problem.truncate(found[-1].text))
        return question.sample(self._benchmark, 0, answers, found)

    def _complete(
        self,
        client: openai.OpenAI,
        question: Question,
        problem: CompletionProblem | MultiTurnProblem,
        prompt: str,
        suffix: str | None,
        turn: int = 0,
    ) -> list[CompletionChoice]:
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
                stop=list(problem.stop[:MAX_STOP]) or None,
                seed=seed_of(settings, self._benchmark, question, turn) % 2**31,
                **optional,
            )
        except openai.APIStatusError as refused:
            raise ConfigError(
                f"{self._url} refused a problem ({refused.status_code}): {refused.message[:500]}"
            ) from None
        except openai.APIConnectionError as failure:
            raise ConfigError(
                f"cannot reach {self._url} ({failure.__cause__ or failure}): is the server running?"
            ) from None
        return self._choices(answer, question.n)

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
