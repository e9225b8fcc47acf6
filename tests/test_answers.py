"""Answers of a model, compared with the model itself, and with what its completer says to one request after the other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codekiln.errors import ConfigError
from codekiln.evaluate.answers import ModelAnswers, Question, questions, seed_of
from codekiln.evaluate.problems.cloze import WordClozeProblem
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.evaluate.problems.mtpb import HEADER, TurnsProblem
from codekiln.evaluate.problems.names import VariableNameProblem
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.problems.text import TextProblem
from codekiln.evaluate.samples import Sample
from codekiln.evaluate.settings import INCODER_HINT, PRESETS, BenchmarkClass, Settings, preset_settings
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.model.huggingface import load_model
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer

CODE = "def open_door(name, count=1):\n"
HOLES = [
    HoleProblem(
        task_id=f"hole/{k}", group="hole", prompt=CODE + f"    total = {k}\n", suffix="    return steps\n",
        reference="    steps = 1\n", unit="lines", max_new_tokens=24,
    )
    for k in range(5)
]  # fmt: skip


@pytest.fixture(scope="module")
def completer(small_run: Path) -> Completer:
    return Completer.load(small_run)


@pytest.fixture(scope="module")
def model(small_run: Path) -> Transformer:
    return load_model(small_run / "model")


def ask(completer: Completer, problem: Problem, settings: Settings) -> Sample:
    """The first answer to a problem."""
    [(_, [sample])] = ModelAnswers(completer, "test", settings).answer(
        iter([Question(problem, settings.temperatures[0], 0, 1)])
    )
    return sample


def log_likelihood(model: Transformer, ids: list[int], n_before: int) -> float:
    """Of the ids after the first `n_before`, by one pass of the model that training uses."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    return sum(float(logits[at - 1, ids[at]]) for at in range(n_before, len(ids)))


@pytest.mark.parametrize("method", ["infilling", "left-to-right"])
def test_answers_are_the_truncated_completions(completer: Completer, method: str) -> None:
    settings = Settings(preset="test", method="infilling" if method == "infilling" else "left-to-right")
    with_suffix = method == "infilling"
    asked = list(questions(HOLES, settings, 50))
    found = {
        question.problem.task_id: samples
        for question, samples in ModelAnswers(completer, "test", settings).answer(iter(asked))
    }
    assert len(found) == len(HOLES)
    for problem in HOLES:
        request = InfillRequest(problem.prompt, problem.suffix if with_suffix else None)
        [alone] = completer.complete([request], CompletionParams(sampling=GREEDY, max_new_tokens=24))
        [sample] = found[problem.task_id]
        assert sample.answer == problem.truncate(alone.text, with_suffix=with_suffix)
        assert alone.text.startswith(sample.texts[0]) and sample.number == 0 and not sample.error


def test_samples_of_one_problem_depend_on_its_id_and_the_seed_only(completer: Completer) -> None:
    settings = Settings(preset="test", method="infilling", n_samples=5, temperatures=(0.8, 0.6))

    def sampled(problems: list[HoleProblem], seed: int) -> dict[tuple[str, float, int], str]:
        changed = Settings(preset="test", method="infilling", n_samples=5, temperatures=(0.8, 0.6), seed=seed)
        answers = ModelAnswers(completer, "test", changed).answer(questions(problems, changed, 3))
        return {sample.key[1:]: sample.texts[0] for _, samples in answers for sample in samples}

    all_of_them = sampled(HOLES, 0)
    assert len(all_of_them) == len(HOLES) * 5 * 2 == len(set(all_of_them))
    alone = sampled(HOLES[3:4], 0)
    assert alone == {key: text for key, text in all_of_them.items() if key[0] == "hole/3"}
    assert len(set(alone.values())) > 3 and sampled(HOLES[3:4], 1) != alone
    question = Question(HOLES[3], 0.8, 0, 3)
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=seed_of(settings, "test", question, 0))
    request = InfillRequest(HOLES[3].prompt, HOLES[3].suffix)
    [first, *_] = completer.complete([request], CompletionParams(sampling=params, max_new_tokens=24, n=3))
    assert first.text.startswith(alone["hole/3", 0.8, 0])


@pytest.mark.parametrize("rank_by", ["total", "mean"])
def test_the_candidate_that_fits_the_suffix_best_is_the_answer(
    completer: Completer, model: Transformer, rank_by: str
) -> None:
    settings = Settings(
        preset="test",
        method="reranking",
        temperatures=(0.8,),
        n_candidates=6,
        rank_by="mean" if rank_by == "mean" else "total",
    )
    problem = HOLES[2]
    sample = ask(completer, problem, settings)
    params = SamplingParams(
        temperature=0.8, top_p=0.95, seed=seed_of(settings, "test", Question(problem, 0.8, 0, 1), 0)
    )
    drawn = completer.complete(
        [InfillRequest(problem.prompt)], CompletionParams(sampling=params, max_new_tokens=24, n=6)
    )
    candidates = list(dict.fromkeys(problem.truncate(each.text, with_suffix=False) for each in drawn))
    prompt = completer.prompt_ids(InfillRequest(problem.prompt), 24)
    scores = {}
    for candidate in candidates:
        rest = completer.tokenizer.encode(candidate + problem.suffix)
        score = log_likelihood(model, [*prompt, *rest], len(prompt))
        scores[candidate] = score / (len(rest) if rank_by == "mean" else 1)
    assert len(candidates) > 1 and sample.answer in scores
    assert scores[sample.answer] == pytest.approx(max(scores.values()), abs=1e-3)


def test_each_turn_sees_the_answers_before_it(completer: Completer) -> None:
    turns = ("Open the door.", "Close the door.", "Print the number 7.")
    problem = TurnsProblem(
        task_id="MTPB/1/0", group="MTPB/1", turns=turns, expected=7, max_new_tokens=20, checker="fixed"
    )
    settings = Settings(preset="test", temperatures=(0.5,))
    sample = ask(completer, problem, settings)
    context = HEADER
    for turn, text in enumerate(turns):
        context += f"# {text}\n"
        seed = seed_of(settings, "test", Question(problem, 0.5, 0, 1), turn)
        params = SamplingParams(temperature=0.5, top_p=0.95, seed=seed)
        [alone] = completer.complete([InfillRequest(context)], CompletionParams(sampling=params, max_new_tokens=20))
        assert sample.answers[turn] == problem.truncate(alone.text)
        context += f"{sample.answers[turn]}\n\n"
    assert problem.program(sample.answers).source == context


def test_the_likelier_option_of_a_cloze_is_the_answer(completer: Completer, model: Transformer) -> None:
    bos = completer.tokenizer.bos_ids
    for k in range(6):
        problem = WordClozeProblem(
            task_id=f"cloze/{k}", group="cloze", prompt=f"x = {k}\ncount = ", suffix=f"(count, {k})\n", reference="max"
        )
        for method in ("left-right", "infill-token", "infill-region"):
            sample = ask(completer, problem, Settings(preset="test", method="infilling", cloze_method=method))
            sequences = problem.sequences(completer.tokenizer, completer.tokenizer.infill_format, method, 60)
            scores = [log_likelihood(model, [*bos, *ids], len(bos) or 1) for ids in sequences]
            assert sample.answer == problem.options[scores.index(max(scores))]
            assert sample.logprob == pytest.approx(max(scores), abs=1e-3)


def test_names_are_the_most_frequent_fill(completer: Completer) -> None:
    problem = VariableNameProblem(
        task_id="names/0", group="names", reference="count",
        parts=("def open_door(", "):\n    total = ", " + 1\n    return ", "\n"),
    )  # fmt: skip
    infilled = ask(completer, problem, Settings(preset="test", method="infilling"))
    assert len(infilled.texts) == 3
    assert infilled.answer == problem.vote([problem.truncate(text) for text in infilled.texts])
    left = ask(completer, problem, Settings(preset="test"))
    [alone] = completer.complete([InfillRequest(problem.prompt)], CompletionParams(sampling=GREEDY, max_new_tokens=20))
    assert left.answer == problem.truncate(alone.text)
    reranked = ask(completer, problem, preset_settings("incoder-reranking", "names", can_infill=True))
    assert len(reranked.texts) == 25 and reranked.answer in {problem.truncate(text) for text in reranked.texts}


def test_the_likelihood_of_a_long_text_is_that_of_overlapping_windows(completer: Completer, model: Transformer) -> None:
    text = "".join(f"def open_door_{k}(name):\n    return name + {k}\n" for k in range(40))
    tokenizer, half = completer.tokenizer, completer.context_length // 2
    bos, ids = tokenizer.bos_ids, tokenizer.encode_document(text)
    assert len(ids) > 3 * completer.context_length
    expected = log_likelihood(model, [*bos, *ids[:half]], len(bos) or 1)
    for start in range(half, len(ids), half):
        expected += log_likelihood(model, ids[start - half : start + half], half)
    sample = ask(completer, TextProblem(task_id="text", group="text", reference=text), Settings(preset="test"))
    assert sample.logprob == pytest.approx(expected, rel=1e-4) and sample.n_tokens == len(ids)


def test_a_text_without_a_bos_has_no_bits_for_its_first_token(
    completer: Completer, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "bos_ids", [])
    text = "numéro = 1\nfor number in numbers:\n    pass\n"
    ids = completer.tokenizer.encode_document(text)
    sample = ask(completer, TextProblem(task_id="text", group="text", reference=text), Settings(preset="test"))
    assert sample.logprob == pytest.approx(log_likelihood(model, ids, 1), rel=1e-4)
    scored = b"".join(completer.tokenizer.token_bytes[token] for token in ids[1:])
    assert (sample.n_tokens, sample.n_bytes) == (len(ids) - 1, len(scored)) and len(scored) < len(text.encode())


def test_a_refused_prompt_is_an_error_of_its_samples_only(small_run: Path, model: Transformer) -> None:
    completer = Completer.of_model(model, Tokenizer.load(small_run / "tokenizer.json"), pool_tokens=50)
    long = replace(HOLES[1], prompt=HOLES[1].prompt * 9)
    settings = Settings(preset="test", n_samples=3, temperatures=(0.8,))
    found = {
        question.problem.task_id: samples
        for question, samples in ModelAnswers(completer, "test", settings).answer(
            questions([HOLES[0], long, HOLES[2]], settings, 3)
        )
    }
    assert [len(found[each]) for each in ("hole/0", "hole/1", "hole/2")] == [3, 3, 3]
    assert not any(sample.error for each in ("hole/0", "hole/2") for sample in found[each])
    for number, sample in enumerate(found["hole/1"]):
        assert sample.key == ("test", "hole/1", 0.8, number) and sample.answers == ()
        assert "24 new tokens" in sample.error and "there are 50" in sample.error


def test_what_is_not_drawn_is_asked_once() -> None:
    cloze = WordClozeProblem(task_id="c", group="c", prompt="", suffix="", reference="max")
    text = TextProblem(task_id="t", group="t", reference="x")
    settings = Settings(preset="test", n_samples=2, temperatures=(0.8, 0.2))
    asked = [
        (each.problem.task_id, each.temperature, each.n) for each in questions([cloze, text, HOLES[0]], settings, 9)
    ]
    assert asked == [("c", 0.8, 1), ("t", 0.8, 1), ("hole/0", 0.8, 2), ("hole/0", 0.2, 2)]


def test_an_answer_ends_before_the_stop_strings_of_the_settings(completer: Completer) -> None:
    settings = Settings(preset="test", method="infilling")
    whole = ask(completer, HOLES[0], settings).texts[0]
    assert len(whole) > 4
    cut = ask(completer, HOLES[0], replace(settings, stop=(whole[3],)))
    assert cut.texts[0] == whole[: whole.index(whole[3])] and cut.n_tokens > 0


def test_a_model_that_cannot_infill_is_refused_before_it_answers(
    completer: Completer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Completer, "can_infill", False)
    with pytest.raises(ConfigError, match=r"cannot infill.*--method"):
        ModelAnswers(completer, "test", Settings(preset="test", method="infilling"))
    cloze = WordClozeProblem(task_id="c", group="c", prompt="", suffix="", reference="max")
    with pytest.raises(ConfigError, match=r"cannot infill.*infill-region.*--preset"):
        ModelAnswers(completer, "test", Settings(preset="test")).samples_per_job([cloze])
    assert preset_settings("greedy", "functions", can_infill=False).method == "left-to-right"


def test_presets_are_the_settings_of_the_papers() -> None:
    def settings(preset: str, benchmark: BenchmarkClass) -> Settings:
        return preset_settings(preset, benchmark, can_infill=True)

    codegen = settings("codegen", "functions")
    assert (codegen.n_samples, codegen.temperatures, codegen.top_p) == (200, (0.2, 0.6, 0.8), 0.95)
    assert (codegen.ks, codegen.cut_rule, codegen.hint) == ((1, 10, 100), "codegen", "")
    turns = settings("codegen", "turns")
    assert (turns.n_samples, turns.temperatures, turns.ks) == (40, (0.2,), (1,))
    incoder = settings("incoder", "functions")
    assert (incoder.n_samples, incoder.temperatures, incoder.method) == (200, (0.2, 0.8), "left-to-right")
    assert (incoder.hint, incoder.cut_rule) == (INCODER_HINT, "incoder")
    for preset in PRESETS:
        is_incoder = preset.startswith("incoder")
        assert ("<|" in settings(preset, "holes").stop) == ("</code>" in settings(preset, "turns").stop) == is_incoder
        assert (settings(preset, "docstrings").file_end == "\n<|/ file |>") == is_incoder
    single, reranked, infilled = (
        settings(preset, "holes") for preset in ("incoder-left-to-right", "incoder-reranking", "incoder")
    )
    assert [each.method for each in (single, reranked, infilled)] == ["left-to-right", "reranking", "infilling"]
    assert [each.temperatures for each in (single, reranked, infilled)] == [(0.2,), (0.8,), (0.2,)]
    assert (reranked.n_candidates, reranked.rank_by) == (10, "total")
    assert settings("incoder-reranking", "docstrings").rank_by == "mean"
    assert settings("incoder-reranking", "docstrings").temperatures == (0.8,)
    assert settings("incoder-left-to-right", "docstrings").temperatures == (0.0,)
    assert settings("incoder-left-to-right", "return-types").temperatures == (0.2,)
    assert settings("incoder", "return-types").temperatures == (0.0,)
    assert (
        settings("incoder", "programs").temperatures == (0.2,)
        and settings("incoder", "programs").method == "left-to-right"
    )
    assert all(settings(preset, "functions").preset == preset for preset in PRESETS)
    with pytest.raises(ConfigError, match="no preset 'best': choose one of greedy, codegen"):
        settings("best", "functions")
    with pytest.raises(ConfigError, match="all samples are equal"):
        Settings(preset="test", n_samples=2)
