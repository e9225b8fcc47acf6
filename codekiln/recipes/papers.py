"""What the papers of CodeGen and InCoder state, next to what the recipes set. docs/papers.md is written from this file.

A statement that differs between sizes has one text per size. Facts that no primary source confirms are marked "unconfirmed".
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codekiln.errors import ConfigError
from codekiln.recipes import describe

NOTHING = "no field"  # of a line that no recipe can set
SAME = "none"  # no difference
ABSENT = "-"  # in place of a field that a recipe does not have
CONFIGS = "codekiln/model/configs.py"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a published card.

    `fields` are those of the recipe, with the stage before a colon. `code` is a part of the recipe's file, or of `file`, that
    occurs there once. `test` is FILE::NAME in tests/.
    """

    name: str
    stated: str | Mapping[str, str]  # by size
    source: str
    fields: tuple[str, ...] = ()
    code: str = ""
    file: str = ""
    difference: str = SAME
    test: str


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system: recipes are named `prefix`-SIZE. The small twin is the recipe of the size `large`, made small."""

    title: str
    prefix: str
    large: str
    sizes: Mapping[str, str]  # of the recipes, as the paper calls them
    file: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class CardRow:
    """A line for one recipe. `values` are the values of its fields, as JSON."""

    line: Line
    stated: str
    values: Mapping[str, str]


def system_of(name: str) -> System:
    """The system of a recipe. Raises ConfigError if no paper has it."""
    for system in SYSTEMS:
        if name in recipe_names(system):
            return system
    known = ", ".join(name for system in SYSTEMS for name in recipe_names(system))
    raise ConfigError(f"no paper has the recipe {name}: --card prints those of {known}")


def recipe_names(system: System) -> tuple[str, ...]:
    """The recipes of a system, from small to large."""
    return tuple(f"{system.prefix}-{size}" for size in system.sizes)


def card_rows(name: str) -> Iterator[CardRow]:
    """The lines of a recipe's paper, with the values that the recipe sets. Raises ConfigError if no paper has it."""
    system = system_of(name)
    values = {field: json.dumps(value, ensure_ascii=False) for field, value, _ in describe(name)}
    size = name.removeprefix(f"{system.prefix}-")
    for line in system.lines:
        stated = line.stated if isinstance(line.stated, str) else line.stated[size]
        yield CardRow(line=line, stated=stated, values={field: values[field] for field in line.fields})


def render_page() -> str:
    """docs/papers.md."""
    systems = (text for system in SYSTEMS for text in (*_render_system(system), *_render_twin(system)))
    return "\n".join([_INTRODUCTION, *systems])


def _render_system(system: System) -> Iterator[str]:
    yield f"## {system.title}\n"
    yield "| line | the paper states | where | Codekiln sets | difference | line of the recipe | test |"
    yield "|---|---|---|---|---|---|---|"
    rows = {name: list(card_rows(name)) for name in recipe_names(system)}
    for k, line in enumerate(system.lines):
        if isinstance(line.stated, str):
            stated = line.stated
        else:
            stated = "; ".join(f"{system.sizes[size]}: {text}" for size, text in line.stated.items())
        values = {name: list(found[k].values.items()) for name, found in rows.items()}
        if not line.fields:
            sets = NOTHING
        elif len({str(each) for each in values.values()}) == 1:
            sets = "<br>".join(f"`{field}` = `{value}`" for field, value in next(iter(values.values())))
        else:
            sets = "<br>".join(
                f"{name} `{field}` = `{value}`" for name, each in values.items() for field, value in each
            )
        file = line.file or system.file
        code = f"[{file.rsplit('/', 1)[1]}](../{file}): `{line.code}`" if line.code else NOTHING
        test_file, test = line.test.split("::")
        cells = (line.name, stated, line.source, sets, line.difference, code, f"[{test}](../tests/{test_file})")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


@dataclass(frozen=True)
class TwinField:
    """A field that differs between the large recipe and its small twin, as JSON; "-" where a recipe has no such field."""

    field: str
    large: str
    small: str
    source: str


def twin_fields(system: System) -> list[TwinField]:
    """The fields that differ. Those that differ equally in all stages are listed once; of sources, only the kinds are."""
    large, small = (
        {field: (json.dumps(value, ensure_ascii=False), source) for field, value, source in describe(name)}
        for name in (f"{system.prefix}-{system.large}", f"{system.prefix}-tiny")
    )
    stages = {field.rpartition(": ")[0] for field in large}
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for field in dict.fromkeys([*large, *small]):
        stage, _, path = field.rpartition(": ")
        if "corpus.sources[" in path and not path.endswith("].kind"):
            continue
        (before, _), (after, source) = (fields.get(field, (ABSENT, "")) for fields in (large, small))
        if before != after:
            found.setdefault((path, before, after, source), []).append(stage)
    return [
        TwinField(f"{stage}: {path}" if stage and len(names) < len(stages) else path, before, after, source)
        for (path, before, after, source), names in found.items()
        for stage in (names if len(names) < len(stages) else names[:1])
    ]


def _render_twin(system: System) -> Iterator[str]:
    name, large = f"{system.prefix}-tiny", f"{system.prefix}-{system.large}"
    values, large_values = ({field: value for field, value, _ in describe(each)} for each in (name, large))
    groups: dict[str, list[str]] = {"equal": [], "other": [], "unset": []}
    for line in system.lines:
        is_equal = all(values.get(field) == large_values[field] for field in line.fields)
        groups["unset" if not line.fields else "equal" if is_equal else "other"].append(line.name)
    yield f"### {system.title}: the small twin\n"
    yield (
        f"`{name}` is `{large}` with the changes in this table. All other fields are equal, so a run of it is a run of the "
        "same code.\n[Reproduce a paper](guide/reproduce.md#small-twins) has its commands and results.\n"
    )
    yield f"- Lines above that it has with the values of `{large}`: {', '.join(groups['equal'])}."
    yield f"- Lines with other values: {', '.join(groups['other'])}."
    yield f"- Lines that no recipe sets: {', '.join(groups['unset'])}.\n"
    yield f"| field | `{large}` | `{name}` | source |"
    yield "|---|---|---|---|"
    for row in twin_fields(system):
        cells = (
            f"`{row.field}`",
            *(f"`{each}`" if each != ABSENT else each for each in (row.large, row.small)),
            row.source,
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


_INTRODUCTION = """\
# The papers and the recipes

What the papers of CodeGen and InCoder state, and what Codekiln's recipes set. `codekiln recipes show NAME --card` prints the
lines of one recipe, and `codekiln recipes show NAME` prints all of its fields. This page is written from
`codekiln/recipes/papers.py`; `tests/test_papers.py` compares it with the recipes.

- A field without the name of a recipe has this value in all sizes. Stages (`nl`, `multi`, `mono`) are before the colon.
- "unconfirmed": no primary source was found for the number (the paper itself, released code, configs or model cards).
- `codegen-tiny` and `incoder-tiny` are small twins, which run on a laptop. A table after each system lists where they differ.
- Data sources are those with `--data FOLDER` (shown as `DATA`). Without it, the recipes read a folder of code.
"""

_CODEGEN_SIZES = {"350M": "350M", "2B": "2.7B", "6B": "6.1B", "16B": "16.1B"}

CODEGEN = System(
    title="CodeGen",
    prefix="codegen",
    large="16B",
    sizes=_CODEGEN_SIZES,
    file="codekiln/recipes/codegen.py",
    lines=(
        Line(
            name="Publisher",
            stated="Salesforce Research; arXiv 2203.13474, March 2022; ICLR 2023",
            source="title page",
            difference="Codekiln publishes no weights. A run does not record a publisher, and its card says so.",
            test="test_recipe.py::test_card_has_the_lines_of_published_cards",
        ),
        Line(
            name="Model size",
            stated={
                "350M": "20 layers, width 1,024, 16 heads",
                "2B": "32 layers, width 2,560, 32 heads",
                "6B": "33 layers, width 4,096, 16 heads",
                "16B": "34 layers, width 6,144, 24 heads",
            },
            source="table 6; the released configs",
            fields=("nl: model.n_layers", "nl: model.d_model", "nl: model.n_heads", "nl: model.rotary_dim"),
            code='"350M": (20, 1024, 16, 64, 32),',
            file=CONFIGS,
            difference="none in shape. With this shape, the model called 6.1B has 7,064,213,504 parameters.",
            test="test_model_families.py::test_published_sizes_are_exact",
        ),
        Line(
            name="ThePile",
            stated="825.18 GiB of mostly English text, of it 95.16 GiB of code; 354.7B + 31.6B tokens",
            source="section 2.1, appendix A (unconfirmed)",
            fields=("nl: corpus.sources[0].source", "nl: corpus.sources[0].repositories"),
            code='"nl": pile((str(data / "pile"),)),',
            difference="All parts are read. The Pile repeats good parts within an epoch (1,254 GiB); Codekiln reads each "
            "document once per epoch.",
            test="test_paper_data.py::test_codegen_reads_the_pile_the_export_and_python_of_github",
        ),
        Line(
            name="BigQuery",
            stated="C, C++, Go, Java, JavaScript and Python; 119.2B tokens, 341 GiB",
            source="section 2.1, appendix A; tokens: model card",
            fields=("multi: corpus.sources[0].kind", "multi: corpus.sources[0].languages"),
            code='GitHubExport(folder=str(data / "bigquery"), languages=LANGUAGES)',
            difference="The snapshot is not known. Codekiln drops repositories without a permissive license.",
            test="test_paper_data.py::test_codegen_reads_the_pile_the_export_and_python_of_github",
        ),
        Line(
            name="BigPython",
            stated="Python, permissive licenses, not personal, October 2021; 71.7B tokens, 217 GiB of 5.5 TB",
            source="section 2.1, appendix A; tokens: model card",
            fields=(
                "mono: corpus.sources[0].selection.created",
                "mono: corpus.sources[0].selection.main_languages",
                "mono: corpus.sources[0].selection.licenses",
            ),
            code='Forge(service="github", folder=data / "bigpython", selection=repositories, languages=("Python",))',
            difference="BigPython is not public. The repositories that GitHub has today are selected by date, language and "
            "the licenses that InCoder names.",
            test="test_paper_data.py::test_codegen_reads_the_pile_the_export_and_python_of_github",
        ),
        Line(
            name="De-duplication",
            stated="exact, by the SHA-256 of the content",
            source="section 2.1, appendix A (unconfirmed); jaxformer preprocess/2_dedup_raw.py",
            fields=("multi: corpus.steps[3].kind", "multi: corpus.steps[3].key", "mono: corpus.steps[3].key"),
            code='ExactDuplicates(key="content")',
            difference="none in the rule. Codekiln redacts e-mail addresses first, and also compares The Pile.",
            test="test_paper_data.py::test_codegen_reads_the_pile_the_export_and_python_of_github",
        ),
        Line(
            name="Filter: extension",
            stated="files with the extensions of the languages are kept",
            source="appendix A (unconfirmed)",
            fields=("multi: corpus.sources[0].languages", "mono: corpus.sources[0].languages"),
            code='LANGUAGES = ("C", "C++", "Go", "Java", "JavaScript", "Python")',
            difference="The list of extensions is not published. Where languages share one, the content decides.",
            test="test_paper_data.py::test_codegen_reads_the_pile_the_export_and_python_of_github",
        ),
        Line(
            name="Filter: mean line",
            stated="lines have fewer than 100 characters on average",
            source="appendix A (unconfirmed)",
            fields=("multi: corpus.steps[1].filters[0].kind", "multi: corpus.steps[1].filters[0].limit"),
            code="Filters(filters=CODEGEN_FILTERS if is_code else ())",
            test="test_corpus.py::test_filter_keeps_its_threshold_and_drops_beyond",
        ),
        Line(
            name="Filter: longest line",
            stated="no line is longer than 1,000 characters",
            source="appendix A (unconfirmed)",
            fields=("multi: corpus.steps[1].filters[1].kind", "multi: corpus.steps[1].filters[1].limit"),
            code="Filters(filters=CODEGEN_FILTERS if is_code else ())",
            test="test_corpus.py::test_filter_keeps_its_threshold_and_drops_beyond",
        ),
        Line(
            name="Filter: digits",
            stated="files with more than 90% decimal or hexadecimal digits are dropped",
            source="appendix A (unconfirmed)",
            fields=("multi: corpus.steps[1].filters[2].kind", "multi: corpus.steps[1].filters[2].limit"),
            code="Filters(filters=CODEGEN_FILTERS if is_code else ())",
            difference="The paper does not name the denominator. Codekiln's is all characters of the file.",
            test="test_corpus.py::test_filter_keeps_its_threshold_and_drops_beyond",
        ),
        Line(
            name="Tokenizer",
            stated="byte-level BPE of GPT-2; for Multi and Mono with 38 tokens for runs of white space",
            source="section 2.2; the released tokenizer.json",
            fields=("nl: tokenizer.name", "multi: tokenizer.name", "mono: tokenizer.name"),
            code='PretrainedTokenizer(name="codegen-nl" if name == "nl" else "codegen")',
            test="test_tokenizer.py::test_codegens_ids_are_the_released_ones",
        ),
        Line(
            name="Language prefix",
            stated="each file of Multi begins with the name of its language",
            source="section 2.1",
            fields=("multi: corpus.steps[4].kind",),
            code='(LanguagePrefix(),) if name == "multi" else ()',
            difference="The form of the prefix is not published. Codekiln writes the name and a newline.",
            test="test_metadata.py::test_recipes_of_the_papers_have_their_metadata",
        ),
        Line(
            name="Optimizer, betas",
            stated="Adam, 0.9 and 0.999",
            source="section 2.3; jaxformer",
            fields=("multi: train.optimizer.kind", "multi: train.optimizer.betas"),
            code="betas=(0.9, 0.999)",
            difference="none: Adam with decoupled weight decay is AdamW.",
            test="test_optimizer.py::test_adamw_step_by_hand",
        ),
        Line(
            name="Eps",
            stated="1e-8",
            source="section 2.3; jaxformer",
            fields=("multi: train.optimizer.eps",),
            code="eps=1e-8",
            test="test_optimizer.py::test_adamw_step_by_hand",
        ),
        Line(
            name="Batch size",
            stated={
                "350M": "500k tokens",
                "2B": "1M tokens",
                "6B": "2M tokens; the released config has 1,048,576",
                "16B": "2M tokens",
            },
            source="table 6 (unconfirmed); jaxformer configs of 350M, 2B and 6B",
            fields=("multi: train.global_batch_size",),
            code="batch_size = _SIZES[size].batch_size",
            difference="Sequences of 2,048 tokens. For 6.1B, paper and released config disagree; the config is followed.",
            test="test_recipes.py::test_codegen_has_the_batches_and_tokens_of_the_paper",
        ),
        Line(
            name="Context window",
            stated="2,048",
            source="table 6; the released configs",
            fields=("multi: model.context_length", "multi: train.packing"),
            code="CONTEXT = 2048",
            test="test_loader.py::test_concatenated_sequences_equal_those_of_codegens_code",
        ),
        Line(
            name="Gradient accumulation",
            stated="not in the paper; 32 (350M), 16 (2.7B, 6.1B) in the released configs",
            source="jaxformer configs",
            difference="Not part of a recipe: `--micro-batch-tokens` sets it, and it does not change the batch.",
            test="test_planning.py::test_weights_are_gathered_and_gradients_scattered_per_micro_batch",
        ),
        Line(
            name="Gradient clipping",
            stated="not in the paper; global norm 1.0 in the released configs",
            source="jaxformer configs",
            fields=("multi: train.optimizer.max_grad_norm",),
            code="max_grad_norm=1.0",
            test="test_recipes.py::test_codegen_has_the_batches_and_tokens_of_the_paper",
        ),
        Line(
            name="Warm-up",
            stated="3,000 steps in every stage",
            source="section 2.3; jaxformer configs",
            fields=(
                "nl: train.optimizer.schedule.warmup_steps",
                "multi: train.optimizer.schedule.warmup_steps",
                "mono: train.optimizer.schedule.warmup_steps",
            ),
            code="nl = WarmupCosine(warmup_steps=3000,",
            test="test_optimizer.py::test_published_schedules_at_their_corners",
        ),
        Line(
            name="Learning rate",
            stated={
                "350M": "3.0e-4 NL, 1.8e-4 Multi, 1.8e-4 Mono (Mono unconfirmed)",
                "2B": "1.6e-4 NL, 0.8e-4 Multi and Mono (both unconfirmed)",
                "6B": "1.2e-4 NL, 0.4e-4 Multi and Mono (both unconfirmed)",
                "16B": "0.9e-4 NL (unconfirmed), 0.5e-4 Multi and Mono (by a survey)",
            },
            source="table 6; jaxformer configs of NL up to 6.1B and of 350M Multi",
            fields=("nl: train.optimizer.lr", "multi: train.optimizer.lr", "mono: train.optimizer.lr"),
            code="nl_lr=0.9e-4, code_lr=0.5e-4",
            test="test_recipes.py::test_codegen_has_the_batches_and_tokens_of_the_paper",
        ),
        Line(
            name="Weight decay",
            stated="0.1",
            source="jaxformer configs",
            fields=("multi: train.optimizer.weight_decay",),
            code="weight_decay=0.1",
            difference="jaxformer stacks the norms and biases of all layers into matrices, so it decays them too. Codekiln "
            "decays matrices only.",
            test="test_optimizer.py::test_adamw_step_by_hand",
        ),
        Line(
            name="Schedule",
            stated="cosine; NL: to a tenth within 300k steps, then constant; 350M Multi: to 3.0e-5 within 147k steps",
            source="section 2.3; jaxformer configs",
            fields=(
                "nl: train.optimizer.schedule.decay_steps",
                "nl: train.optimizer.schedule.min_lr_ratio",
                "multi: train.optimizer.schedule.decay_steps",
                "multi: train.optimizer.schedule.min_lr_ratio",
            ),
            code="mixed = WarmupCosine(warmup_steps=3000, decay_steps=147_000, min_lr_ratio=3.0e-5 / 1.8e-4)",
            difference="none for 350M NL and Multi. The last ratio of all other code stages is not known; that of 350M Multi "
            "is used.",
            test="test_optimizer.py::test_published_schedules_at_their_corners",
        ),
        Line(
            name="Precision",
            stated="not in the paper; bfloat16 with float32 weights and optimizer state, bfloat16 gradient sums in jaxformer",
            source="jaxformer model.py",
            difference="Not part of a recipe: bfloat16 products, float32 weights and gradient sums on CUDA; float32 on CPUs.",
            test="test_planning.py::test_codegen_16b_layers_on_512_ranks",
        ),
        Line(
            name="Initialization",
            stated="NL from random weights, Multi from NL, Mono from Multi, with a new optimizer state; the paper gives no "
            "distribution, jaxformer truncated normals",
            source="section 2.3; jaxformer modules.py",
            fields=("nl: train.initialization",),
            code='initialization="jaxformer"',
            difference="jaxformer's embedding is a linear layer with a bias, which its converter adds to the embedding. "
            "Codekiln trains the embedding without one.",
            test="test_initialization.py::test_weights_of_codegen_are_drawn_as_jaxformer_draws_them",
        ),
        Line(
            name="Training strategy",
            stated="left to right",
            source="section 2.2",
            fields=("nl: train.objective.kind", "multi: train.objective.kind", "mono: train.objective.kind"),
            code="objective=NextToken()",
            test="test_loader.py::test_concatenated_sequences_equal_those_of_codegens_code",
        ),
        Line(
            name="Z-loss",
            stated="not in the paper; 1e-4 in the released code",
            source="jaxformer model.py",
            fields=("multi: train.z_loss",),
            code="z_loss=1e-4",
            test="test_training_loop.py::test_z_loss_keeps_logits_small",
        ),
        Line(
            name="Dropout",
            stated="none",
            source="the released configs",
            fields=("multi: train.dropout", "multi: train.attention_dropout"),
            code="dropout=0.0",
            test="test_recipes.py::test_codegen_has_the_batches_and_tokens_of_the_paper",
        ),
        Line(
            name="Tokens and steps",
            stated={
                "350M": "350k steps of NL, 150k of Multi, 150k of Mono",
                "2B": "350k steps of NL, 150k of Multi, 150k of Mono (the released Mono has 100k)",
                "6B": "350k steps of NL, 150k of Multi (released: 100k), 150k of Mono (released: 140k)",
                "16B": "350k steps of NL (unconfirmed), 150k of Multi, 150k of Mono",
            },
            source="section 2.3; jaxformer configs and names of checkpoints",
            fields=("nl: train.total_tokens", "multi: train.total_tokens", "mono: train.total_tokens"),
            code="total_tokens=n_steps * batch_size * CONTEXT",
            difference="none: steps x sequences x 2,048.",
            test="test_recipes.py::test_codegen_has_the_batches_and_tokens_of_the_paper",
        ),
        Line(
            name="Hardware",
            stated="TPU v4 pods",
            source="model card; jaxformer",
            difference="Not part of a recipe. Codekiln trains on CUDA devices and CPUs; a run records its hardware.",
            test="test_recipe.py::test_card_has_the_lines_of_published_cards",
        ),
        Line(
            name="Time",
            stated="not reported",
            source="not reported",
            difference="Not part of a recipe. `codekiln plan` estimates it, and a run records it.",
            test="test_planning.py::test_plan_command_prints_days_and_the_launch_command",
        ),
    ),
)

_PAPER_DATA = "test_paper_data.py::test_incoder_reads_forges_the_export_and_threads"

INCODER = System(
    title="InCoder",
    prefix="incoder",
    large="6B",
    sizes={"1B": "1.3B", "6B": "6.7B"},
    file="codekiln/recipes/incoder.py",
    lines=(
        Line(
            name="Publisher",
            stated="Facebook AI Research; arXiv 2204.05999, April 2022; ICLR 2023",
            source="title page",
            difference="Codekiln publishes no weights. A run does not record a publisher, and its card says so.",
            test="test_recipe.py::test_card_has_the_lines_of_published_cards",
        ),
        Line(
            name="Model size",
            stated={
                "1B": "24 layers, width 2,048, 32 heads",
                "6B": "32 layers, width 4,096, 32 heads",
            },
            source="appendix A.1; the released configs",
            fields=("model.n_layers", "model.d_model", "model.n_heads", "model.vocab_size"),
            code='_INCODER = {"1B": (24, 2048, 32), "6B": (32, 4096, 32)}',
            file=CONFIGS,
            test="test_model_families.py::test_published_sizes_are_exact",
        ),
        Line(
            name="Permissive code",
            stated="159 GB of code under MIT, Apache-2.0, BSD-2-Clause or BSD-3-Clause in 28 languages, of it 52 GB of Python",
            source="section 3.1",
            fields=("corpus.steps[0].licenses", "corpus.sources[0].languages"),
            code="LicenseGate(licenses=INCODER_LICENSES | STACK_EXCHANGE_LICENSES)",
            difference="none in the licenses; those of StackOverflow's posts are added, because the gate reads them too.",
            test="test_corpus.py::test_there_are_the_28_languages_of_the_paper",
        ),
        Line(
            name="StackOverflow",
            stated="57 GB of questions, answers and comments",
            source="section 3.1",
            fields=("corpus.sources[3].kind",),
            code='StackExchange(folder=data / "stackexchange")',
            difference="none in the form, which is that of the paper's examples. The dump of that date is not named.",
            test="test_stackexchange.py::test_threads_have_the_layout_of_the_paper",
        ),
        Line(
            name="GitHub and GitLab",
            stated="public repositories up to 9 December 2021 that are not forks, whose main language is Python, JavaScript "
            "or Jupyter",
            source="section 3.1",
            fields=(
                "corpus.sources[0].selection.created",
                "corpus.sources[0].selection.main_languages",
                "corpus.sources[1].selection.created",
            ),
            code='created=("2008-01-01", "2021-12-09")',
            difference="The commits are those of today, not those of 2021.",
            test=_PAPER_DATA,
        ),
        Line(
            name="BigQuery",
            stated="all other Python and Jupyter files under the same licenses from the GitHub archive on BigQuery",
            source="section 3.1",
            fields=("corpus.sources[2].kind", "corpus.sources[2].languages"),
            code='GitHubExport(folder=str(data / "bigquery"), languages=("Python", "Jupyter"))',
            difference="The export has no files above 1 MB. Files that the forges have too are dropped as duplicates.",
            test=_PAPER_DATA,
        ),
        Line(
            name="De-duplication",
            stated="exact, by file extension and sequence of alphanumeric tokens, with a Bloom filter",
            source="section 3.1",
            fields=("corpus.steps[3].kind", "corpus.steps[3].key"),
            code="ExactDuplicates(),",
            difference="Codekiln compares without a Bloom filter, so no file is dropped by a false positive.",
            test="test_corpus.py::test_duplicates_differ_in_white_space_and_punctuation_only",
        ),
        Line(
            name="Filter: longest line",
            stated="files with a line of more than 3,000 tokens are dropped",
            source="section 3.1",
            fields=("corpus.steps[1].filters[0].kind", "corpus.steps[1].filters[0].limit"),
            code="Filters(filters=INCODER_FILTERS)",
            difference="The paper does not define a token here. Codekiln's is a run of letters, digits and underscores, or "
            "another visible character.",
            test="test_corpus.py::test_filter_keeps_its_threshold_and_drops_beyond",
        ),
        Line(
            name="Filter: mean line",
            stated="files with more than 100 tokens per line on average are dropped",
            source="section 3.1",
            fields=("corpus.steps[1].filters[1].kind", "corpus.steps[1].filters[1].limit"),
            code="Filters(filters=INCODER_FILTERS)",
            difference="The paper does not define a token here. Codekiln's is a run of letters, digits and underscores, or "
            "another visible character.",
            test="test_corpus.py::test_filter_keeps_its_threshold_and_drops_beyond",
        ),
        Line(
            name="Filter: alphanumeric",
            stated="files with less than 40% alphanumeric characters and underscores are dropped",
            source="section 3.1",
            fields=("corpus.steps[1].filters[2].kind", "corpus.steps[1].filters[2].limit"),
            code="Filters(filters=INCODER_FILTERS)",
            test="test_corpus.py::test_filter_keeps_its_threshold_and_drops_beyond",
        ),
        Line(
            name="Filter: generated files",
            stated="files with a phrase of a generator are dropped: Protocol Buffers, Django, Epydoc, Pdoc, Sphinx, MkDocs, "
            "MathJax",
            source="section 3.1",
            fields=("corpus.steps[1].filters[3].kind", "corpus.steps[1].filters[3].phrases"),
            code="Filters(filters=INCODER_FILTERS)",
            difference="The phrases are not published. Codekiln's are those that these generators write.",
            test="test_corpus.py::test_generated_files_are_dropped",
        ),
        Line(
            name="E-mail addresses",
            stated="replaced by removed@example.com, with a regular expression that is not published",
            source="section 3.1",
            fields=("corpus.steps[2].rules[0].kind",),
            code="Redact(rules=(EMAILS,))",
            difference="The expression is Codekiln's.",
            test="test_corpus.py::test_email_addresses_are_redacted_and_code_is_not",
        ),
        Line(
            name="Metadata",
            stated="file tags with extension, source, name and stars; each attribute before or after the file, with equal "
            "probability",
            source="section 3.1, appendix A.2",
            fields=("corpus.steps[4].kind", "corpus.notebooks"),
            code="FileTags(),",
            test="test_metadata.py::test_each_attribute_is_in_the_opening_tag_half_of_the_time",
        ),
        Line(
            name="Decontamination",
            stated="repositories of CodeSearchNet's and JuICe's evaluation sets are dropped",
            source="section 3.1",
            difference="Not part of the recipe: `--exclude FILE` drops the repositories in a list, and `--decontaminate FILE` "
            "files with problems of a benchmark.",
            test="test_decontaminate.py::test_files_with_a_problem_are_dropped_and_listed",
        ),
        Line(
            name="Tokenizer",
            stated="byte-level BPE; tokens cross spaces but not newlines; 50,518 ids",
            source="section 3.1; the released vocabulary",
            fields=("tokenizer.vocab_size", "tokenizer.pattern"),
            code="tokenizer=replace(INCODER_TOKENIZER, vocab_size=50_516)",
            difference="Trained on the corpus of the run, so merges differ. Two ids of fairseq without use are left out. "
            "Tokens have at most 32 bytes.",
            test="test_tokenizer.py::test_incoders_tokens_cross_spaces_and_never_a_newline",
        ),
        Line(
            name="Optimizer, betas",
            stated="Adam, 0.9 and 0.98",
            source="appendix A.1",
            fields=("train.optimizer.kind", "train.optimizer.betas"),
            code="betas=(0.9, 0.98)",
            difference="none: Adam with decoupled weight decay is AdamW.",
            test="test_optimizer.py::test_adamw_step_by_hand",
        ),
        Line(
            name="Eps",
            stated="not reported",
            source="not reported",
            fields=("train.optimizer.eps",),
            code="eps=1e-8",
            difference="1e-8 is the default of fairseq.",
            test="test_optimizer.py::test_adamw_step_by_hand",
        ),
        Line(
            name="Batch size",
            stated="8 sequences per GPU on 248 GPUs; accumulation is not reported",
            source="appendix A.1",
            fields=("train.global_batch_size",),
            code="global_batch_size=8 * 248",
            difference="4,063,232 tokens, if nothing was accumulated. The paper gives it for 6.7B; 1.3B has the same here.",
            test="test_recipes.py::test_incoder_has_the_numbers_of_the_paper",
        ),
        Line(
            name="Context window",
            stated="2,048",
            source="appendix A.1",
            fields=("model.context_length",),
            code="context_length=2048",
            file=CONFIGS,
            test="test_recipes.py::test_incoder_has_the_numbers_of_the_paper",
        ),
        Line(
            name="Gradient clipping",
            stated="norm 1.0",
            source="appendix A.1",
            fields=("train.optimizer.max_grad_norm",),
            code="max_grad_norm=1.0",
            test="test_recipes.py::test_incoder_has_the_numbers_of_the_paper",
        ),
        Line(
            name="Warm-up",
            stated="1,500 updates",
            source="appendix A.1",
            fields=("train.optimizer.schedule.warmup_steps",),
            code="schedule=WarmupPolynomial(warmup_steps=1500)",
            test="test_optimizer.py::test_published_schedules_at_their_corners",
        ),
        Line(
            name="Learning rate",
            stated="not reported",
            source="not reported",
            fields=("train.optimizer.lr",),
            code='_SIZES = {"1B": _Size(lr=2.0e-4, dropout=0.1), "6B": _Size(lr=1.2e-4, dropout=0.0)}',
            difference="That of GPT-3's models of these sizes (arXiv 2005.14165, table 2.1).",
            test="test_recipes.py::test_incoder_has_the_numbers_of_the_paper",
        ),
        Line(
            name="Weight decay",
            stated="not reported",
            source="not reported",
            fields=("train.optimizer.weight_decay",),
            code="weight_decay=0.01",
            difference="0.01 is Codekiln's.",
            test="test_optimizer.py::test_adamw_step_by_hand",
        ),
        Line(
            name="Schedule",
            stated="polynomial decay; the power is not reported",
            source="appendix A.1",
            fields=("train.optimizer.schedule.kind", "train.optimizer.schedule.power"),
            code="schedule=WarmupPolynomial(warmup_steps=1500)",
            difference="Power 1 and an end at 0 are the defaults of fairseq.",
            test="test_optimizer.py::test_published_schedules_at_their_corners",
        ),
        Line(
            name="Precision",
            stated="not reported",
            source="not reported",
            difference="Not part of a recipe: bfloat16 products with float32 weights on CUDA, float32 on CPUs.",
            test="test_planning.py::test_codegen_16b_layers_on_512_ranks",
        ),
        Line(
            name="Dropout",
            stated={
                "1B": "not in the paper; 0.1, and 0.1 of the weights of attention, in the released config",
                "6B": "not in the paper; 0, and 0.1 of the weights of attention, in the released config",
            },
            source="the released configs",
            fields=("train.dropout", "train.attention_dropout"),
            code="dropout=_SIZES[size].dropout",
            difference="none from the configs. Whether training used these values is not known.",
            test="test_initialization.py::test_dropout_is_where_xglm_has_it",
        ),
        Line(
            name="Initialization",
            stated="from scratch; the paper gives no distribution, the released config std 0.02",
            source="section 3; the released configs",
            fields=("init_from", "train.initialization"),
            code='initialization="normal"',
            difference="none from the configs. Whether training used this value is not known.",
            test="test_initialization.py::test_weights_of_incoder_are_drawn_as_transformers_draws_them",
        ),
        Line(
            name="Training strategy",
            stated="causal masking: spans move to the end of the document, each after its mask; Poisson(1) spans",
            source="section 2.1; the code that the authors name",
            fields=("train.objective.kind", "train.objective.sampling"),
            code='CausalMasking(sampling="released")',
            difference="The released code samples spans otherwise than the text says; it is followed, but spans are never "
            "empty. `--set train.objective.sampling=paper` follows the text.",
            test="test_objectives.py::test_numbers_of_spans_have_the_expected_distribution",
        ),
        Line(
            name="Tokens and steps",
            stated="52B tokens, each document once",
            source="section 3; table 7",
            fields=("train.total_tokens",),
            code="total_tokens=52_000_000_000",
            difference="none if the corpus has 52B tokens. A smaller corpus is read several times.",
            test="test_recipes.py::test_incoder_has_the_numbers_of_the_paper",
        ),
        Line(
            name="Hardware",
            stated={"1B": "not reported", "6B": "248 V100 GPUs"},
            source="appendix A.1",
            difference="Not part of a recipe. Codekiln trains on CUDA devices with bfloat16 and on CPUs, not on V100s; a run "
            "records its hardware.",
            test="test_recipe.py::test_card_has_the_lines_of_published_cards",
        ),
        Line(
            name="Time",
            stated={"1B": "not reported", "6B": "24 days"},
            source="appendix A.1",
            difference="Not part of a recipe. `codekiln plan` estimates it, and a run records it.",
            test="test_planning.py::test_plan_command_prints_days_and_the_launch_command",
        ),
    ),
)

SYSTEMS = (CODEGEN, INCODER)
