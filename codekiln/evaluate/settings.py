"""How answers are generated: the settings of the papers by name. Needs no PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from codekiln.errors import ConfigError
from codekiln.evaluate.problems.problem import ClozeMethod
from codekiln.evaluate.problems.truncation import CutRule

Method = Literal["left-to-right", "reranking", "infilling"]
RankBy = Literal["total", "mean"]
BenchmarkClass = Literal[
    "functions",
    "programs",
    "turns",
    "execution",
    "holes",
    "docstrings",
    "return-types",
    "names",
    "cloze",
    "texts",
]
"""What is asked in a benchmark, on which the settings of the papers depend.

functions     the body of a function: HumanEval
programs      a function from a description: MBPP
turns         a program in several turns: MTPB
execution     the output or input of a function: CRUXEval
holes         lines and spans
docstrings, return-types, names, cloze
texts         the likelihood of documents
"""
# InCoder's metadata of a Python file, which begins every prompt (section 4.1 and the released evaluation code).
INCODER_HINT = "<| file ext=.py |>\n"
# More stop strings of InCoder's released evaluation: tags of its training text, with which a model leaves the code. It also
# names "<|/", which begins with "<|", and the masks, which are never in a generated text.
INCODER_TAGS = ("<|", "<code>", "</code>", "<cell>", "</cell>", "<text>", "</text>")
INCODER_FILE_END = "\n<|/ file |>"  # ends the text after a docstring
KS = (1, 10, 100)  # of pass@k, in both papers
MAX_TEMPERATURE = 2  # as in OpenAI's API
N_RERANKED = 10  # InCoder, section 4
N_RERANKED_NAMES = 25  # InCoder, section 5.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the problems of one benchmark are answered. All of it is written into the result.

    `n_samples` answers are drawn for each problem and temperature. With the method "reranking", each of them is the likeliest
    of `n_candidates`, by the total or mean log-probability of the candidate and the text after it. `hint` comes before every
    prompt. `stop` has strings before which every answer ends, besides those of its problem. `file_end` ends the text after a
    docstring. `cut_rule` ends the functions of HumanEval. `max_new_tokens` None is the limit of the benchmark.
    """

    preset: str
    method: Method = "left-to-right"
    n_samples: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    top_p: float = 0.95
    n_candidates: int = N_RERANKED
    rank_by: RankBy = "total"
    ks: tuple[int, ...] = (1,)
    hint: str = ""
    stop: tuple[str, ...] = ()
    file_end: str = ""
    cut_rule: CutRule = "codex"
    cloze_method: ClozeMethod = "infill-region"
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if 0 in self.temperatures and self.n_samples > 1:
            raise ConfigError("with temperature 0 all samples are equal: draw one, or give a higher --temperature")
        if 0 in self.temperatures and self.method == "reranking":
            raise ConfigError("with temperature 0 all candidates are equal: give a higher --temperature for reranking")
        for temperature in self.temperatures:
            if not 0 <= temperature <= MAX_TEMPERATURE:
                raise ConfigError(f"--temperature must be between 0 and {MAX_TEMPERATURE} (got {temperature:g})")
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ConfigError("a temperature is given twice")


Preset = Callable[[BenchmarkClass, bool], Settings]


def preset_settings(preset: str, benchmark: BenchmarkClass, *, can_infill: bool) -> Settings:
    """The settings of a preset for a class of benchmarks. Raises ConfigError for an unknown preset."""
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[preset](benchmark, can_infill), preset=preset)


def _greedy(benchmark: BenchmarkClass, can_infill: bool) -> Settings:
    """One greedy answer, with the text after the hole if the model can see it."""
    method: Method = "infilling" if can_infill else "left-to-right"
    cloze: ClozeMethod = "infill-region" if can_infill else "left-right"
    return Settings(preset="", method=method, cloze_method=cloze)


def _codegen(benchmark: BenchmarkClass, can_infill: bool) -> Settings:
    """CodeGen: HumanEval with 200 samples at three temperatures, the best for each k (section 3.2); MTPB with 40 samples per
    case (section 4.2), at the temperature of the released script."""
    common = Settings(preset="", temperatures=(0.2,), cut_rule="codegen", cloze_method="left-right")
    if benchmark == "functions":
        return replace(common, n_samples=200, temperatures=(0.2, 0.6, 0.8), ks=KS)
    return replace(common, n_samples=40) if benchmark == "turns" else common


def _incoder(benchmark: BenchmarkClass, can_infill: bool) -> Settings:
    """InCoder with causal masking (sections 4 and 5): HumanEval with 200 samples at 0.2 (k = 1) and 0.8 (k = 10, 100), MBPP
    and infilling with one sample at 0.2, docstrings and return types greedy."""
    common = Settings(
        preset="",
        hint=INCODER_HINT,
        stop=INCODER_TAGS,
        file_end=INCODER_FILE_END,
        temperatures=(0.2,),
        method="infilling",
        cut_rule="incoder",
    )
    if benchmark == "functions":
        return replace(common, method="left-to-right", n_samples=200, temperatures=(0.2, 0.8), ks=KS)
    if benchmark in ("programs", "turns", "execution"):
        return replace(common, method="left-to-right")
    if benchmark in ("docstrings", "return-types"):
        return replace(common, temperatures=(0.0,))
    return common


def _incoder_left_to_right(benchmark: BenchmarkClass, can_infill: bool) -> Settings:
    """InCoder's baseline "L-R single": the text after the hole is not seen."""
    return replace(
        _incoder(benchmark, can_infill),
        method="left-to-right",
        temperatures=(0.0,) if benchmark == "docstrings" else (0.2,),
        cloze_method="left-token",
    )


def _incoder_reranking(benchmark: BenchmarkClass, can_infill: bool) -> Settings:
    """InCoder's baseline "L-R reranking": the likeliest of 10 samples at 0.8 together with the text after the hole, by total
    log-probability; by the mean one for docstrings; of 25 for names."""
    return replace(
        _incoder(benchmark, can_infill),
        method="reranking",
        temperatures=(0.8,),
        n_candidates=N_RERANKED_NAMES if benchmark == "names" else N_RERANKED,
        rank_by="mean" if benchmark == "docstrings" else "total",
        cloze_method="left-right",
    )


PRESETS: dict[str, Preset] = {
    "greedy": _greedy,
    "codegen": _codegen,
    "incoder": _incoder,
    "incoder-left-to-right": _incoder_left_to_right,
    "incoder-reranking": _incoder_reranking,
}
