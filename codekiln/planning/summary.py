"""What training a recipe takes on many accelerators: settings that fit, days, cost, and the command that does it."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from codekiln.files import JsonObject
from codekiln.planning.estimate import ACCELERATORS, StepEstimate, search_settings
from codekiln.progress import progress_bar
from codekiln.recipe import Recipe, StagedRecipe


def estimate_recipe(
    recipe: Recipe | StagedRecipe,
    accelerator_name: str,
    n_gpus: int,
    tensor_parallel: int,
    settings: Sequence[str] = (),
) -> JsonObject:
    """All figures of a recipe, or of a chain, whose stages share a shape and a batch; `settings` are those it was made with.

    Raises ValueError for an unknown accelerator and where devices do not fill nodes, or rows or layers do not divide.
    """
    if accelerator_name not in ACCELERATORS:
        raise ValueError(f"no accelerator is called {accelerator_name!r}: known are {', '.join(ACCELERATORS)}")
    accelerator = ACCELERATORS[accelerator_name]
    if n_gpus > accelerator.node_size and n_gpus % accelerator.node_size:
        raise ValueError(f"{n_gpus} devices do not fill nodes of {accelerator.node_size}: take a multiple of it")
    stages = recipe.recipes if isinstance(recipe, StagedRecipe) else (recipe,)
    train, model = stages[0].train, stages[0].model
    steps: list[StepEstimate] = []
    with progress_bar("Plan", 6) as progress:
        for step in search_settings(train, model, accelerator, n_gpus, tensor_parallel):
            steps.append(step)
            progress.advance(note=f"{step.settings.micro_rows} rows: {step.peak_bytes / 1e9:.1f} GB")
    fitting = [step for step in steps if step.fits(accelerator)]
    best = max(fitting, key=lambda step: step.tokens_per_second, default=None)
    found: JsonObject = {
        "recipe": recipe.name,
        "parameters": model.n_parameters,
        "accelerator": accelerator_name,
        "gpus": n_gpus,
        "tokens_per_step": steps[0].tokens,
        "settings": [
            asdict(step.settings)
            | {
                "bytes": step.memory | {"peak": step.peak_bytes},
                "fits": step.fits(accelerator),
                "seconds": step.seconds,
                "exposed_comm_seconds": step.exposed_comm_seconds,
                "tokens_per_second": step.tokens_per_second,
                "mfu": step.mfu(accelerator),
                "flops": step.flops,
                "collectives": [
                    {"what": what, "over": axis, "times": int(count), "bytes": n_bytes}
                    for (what, axis), (count, n_bytes) in step.collectives.items()
                ],
            }
            for step in steps
        ],
        "best": None,
    }
    if best is not None:
        found["best"] = {
            "settings": steps.index(best),
            "price_per_hour": accelerator.price,
            "stages": [_stage(stage, best, n_gpus, accelerator.price) for stage in stages],
            "command": _command(recipe.name, train.seq_len(model), best, accelerator.node_size, settings)
            if accelerator.is_supported
            else None,
        }
    return found


def _stage(stage: Recipe, step: StepEstimate, n_gpus: int, price: float) -> JsonObject:
    """Days and dollars of a stage; none where its tokens are known only when its corpus is."""
    n_tokens = stage.train.total_tokens
    days = n_tokens / step.tokens_per_second / 86_400 if n_tokens else None
    return {
        "name": stage.name,
        "tokens": n_tokens or None,
        "days": days,
        "dollars": None if days is None else days * 24 * n_gpus * price,
    }


def _command(name: str, seq_len: int, step: StepEstimate, node_size: int, changes: Sequence[str]) -> str:
    """What starts it on each node."""
    settings = step.settings
    n_gpus, micro_tokens = settings.n_ranks, settings.micro_rows * seq_len
    n_nodes, per_node = max(1, n_gpus // node_size), min(n_gpus, node_size)
    nodes = (
        f" --nnodes {n_nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3" if n_nodes > 1 else ""
    )
    start = f"torchrun{nodes} --nproc-per-node {per_node} -m codekiln" if n_gpus > 1 else "codekiln"
    start = f"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 {start}" if n_nodes > 1 else start
    more = f" --tensor-ranks {settings.tensor_parallel}" if settings.tensor_parallel > 1 else ""
    more += " --recompute" if settings.activation_checkpointing else ""
    more += "".join(f" --set {shlex.quote(change)}" for change in changes)
    return f"{start} build {name} --out RUN --device cuda --micro-batch-tokens {micro_tokens}{more}"


def format_summary(found: JsonObject) -> list[str]:
    """What is told below the table of settings."""
    best = found["best"]
    if best is None:
        return [
            "No setting fits: take more devices, those with more memory, or let more ranks share layers (--tensor-ranks)."
        ]
    chosen = found["settings"][best["settings"]]
    told = ["A rank sends and receives in a step:"]
    told += [
        f"  {entry['what']} over {entry['over']} ranks, {entry['times']:,} times, {entry['bytes'] / 1e9:.2f} GB in all"
        for entry in chosen["collectives"]
    ] or ["  nothing"]
    for stage in best["stages"]:
        if stage["days"] is None:
            told.append(f"{stage['name']}: its tokens are known when its corpus is")
        else:
            told.append(
                f"{stage['name']}: {stage['tokens'] / 1e9:,.1f} billion tokens, {stage['days']:,.1f} days, "
                f"{stage['days'] * 24 * found['gpus']:,.0f} GPU hours, ${stage['dollars']:,.0f} at "
                f"${best['price_per_hour']:.2f} an hour"
            )
    if best["command"] is None:
        return [*told, "There is no command for it: training takes CUDA devices and computes in bfloat16 there."]
    return [*told, "Start it on each node with:", f"  {best['command']}"]


def format_table(found: JsonObject) -> list[str]:
    """The settings that were run, aligned under a heading; bytes in GB, and the best is marked."""
    best = found["best"]
    rows: list[tuple[str, ...]] = [_HEADING]
    for k, entry in enumerate(found["settings"]):
        rows.append(
            (
                f"{entry['micro_rows']}{'*' if best is not None and best['settings'] == k else ' '}",
                "yes" if entry["recompute"] else "no",
                *(f"{n_bytes / 1e9:.1f}" for n_bytes in entry["bytes"].values()),
                "yes" if entry["fits"] else "no",
                f"{entry['seconds']:.3f}",
                f"{entry['exposed_comm_seconds']:.3f}",
                f"{entry['tokens_per_second']:,.0f}",
                f"{entry['mfu']:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


_HEADING = (
    "rows ",
    "recompute",
    "weights",
    "gradients",
    "moments",
    "activations",
    "peak",
    "fits",
    "s/step",
    "waiting",
    "tokens/s",
    "MFU",
)
