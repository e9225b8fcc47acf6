"""Summary of an estimate: the settings that fit, days, cost, and the launch command."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from codekiln.errors import ConfigError
from codekiln.files import JsonObject
from codekiln.planning.estimate import ACCELERATORS, StepEstimate, search_settings
from codekiln.progress import progress_bar
from codekiln.recipe import Recipe, StagedRecipe


def estimate_recipe(
    recipe: Recipe | StagedRecipe,
    accelerator_name: str,
    n_gpus: int,
    tensor_parallel: int,
    overrides: Sequence[str] = (),
) -> JsonObject:
    """All figures of a recipe. The stages of a staged recipe share one model and one batch size.

    `overrides` are those that the recipe was made with; the launch command repeats them. Raises ConfigError for an unknown
    accelerator, and if devices do not fill nodes or work does not divide over ranks.
    """
    if accelerator_name not in ACCELERATORS:
        raise ConfigError(f"unknown accelerator {accelerator_name!r}: choose from {', '.join(ACCELERATORS)}")
    accelerator = ACCELERATORS[accelerator_name]
    if n_gpus > accelerator.node_size and n_gpus % accelerator.node_size:
        raise ConfigError(f"{n_gpus} devices are not a multiple of the node size {accelerator.node_size}")
    stages = recipe.recipes if isinstance(recipe, StagedRecipe) else (recipe,)
    train, model = stages[0].train, stages[0].model
    steps: list[StepEstimate] = []
    with progress_bar("Estimate", 6) as progress:
        for step in search_settings(train, model, accelerator, n_gpus, tensor_parallel):
            steps.append(step)
            progress.advance(note=f"micro-batch {step.settings.micro_batch_size}: {step.peak_bytes / 1e9:.1f} GB")
    fitting = [step for step in steps if step.fits(accelerator)]
    best = max(fitting, key=lambda step: step.tokens_per_second, default=None)
    summary: JsonObject = {
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
                    {"operation": operation, "axis": axis, "count": int(count), "bytes": n_bytes}
                    for (operation, axis), (count, n_bytes) in step.collectives.items()
                ],
            }
            for step in steps
        ],
        "best": None,
    }
    if best is not None:
        command = _launch_command(recipe.name, train.seq_len(model), best, accelerator.node_size, overrides)
        summary["best"] = {
            "settings": steps.index(best),
            "price_per_hour": accelerator.price,
            "stages": [_stage(stage, best, n_gpus, accelerator.price) for stage in stages],
            "command": command if accelerator.is_supported else None,
        }
    return summary


def format_summary(summary: JsonObject) -> list[str]:
    """The lines below the table of settings."""
    best = summary["best"]
    if best is None:
        return [
            "No setting fits: use more devices, devices with more memory, or a larger tensor-parallel size "
            "(--tensor-parallel)."
        ]
    chosen = summary["settings"][best["settings"]]
    lines = ["Communication per rank and step:"]
    lines += [
        f"  {entry['operation']} over the {entry['axis']} axis: {entry['count']:,} times, {entry['bytes'] / 1e9:.2f} GB"
        for entry in chosen["collectives"]
    ] or ["  none"]
    for stage in best["stages"]:
        if stage["days"] is None:
            lines.append(f"{stage['name']}: token count unknown until the corpus is built")
        else:
            lines.append(
                f"{stage['name']}: {stage['tokens'] / 1e9:,.1f} billion tokens, {stage['days']:,.1f} days, "
                f"{stage['days'] * 24 * summary['gpus']:,.0f} GPU hours, ${stage['dollars']:,.0f} at "
                f"${best['price_per_hour']:.2f} per hour"
            )
    if best["command"] is None:
        return [*lines, "There is no launch command: Codekiln trains on CUDA devices with bfloat16 only."]
    return [*lines, "Start it on each node with:", f"  {best['command']}"]


def format_table(summary: JsonObject) -> list[str]:
    """The settings that were estimated, aligned under a heading, in GB per rank. `*` marks the best."""
    best = summary["best"]
    rows: list[tuple[str, ...]] = [_HEADING]
    for k, entry in enumerate(summary["settings"]):
        rows.append(
            (
                f"{entry['micro_batch_size']}{'*' if best is not None and best['settings'] == k else ' '}",
                "yes" if entry["activation_checkpointing"] else "no",
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


def _stage(stage: Recipe, step: StepEstimate, n_gpus: int, price: float) -> JsonObject:
    """Days and dollars of a stage; None if the number of tokens depends on the corpus."""
    n_tokens = stage.train.total_tokens
    days = n_tokens / step.tokens_per_second / 86_400 if n_tokens else None
    return {
        "name": stage.name,
        "tokens": n_tokens or None,
        "days": days,
        "dollars": None if days is None else days * 24 * n_gpus * price,
    }


def _launch_command(name: str, seq_len: int, step: StepEstimate, node_size: int, overrides: Sequence[str]) -> str:
    """The command that starts the run, on each node."""
    settings = step.settings
    n_gpus, micro_batch_tokens = settings.n_ranks, settings.micro_batch_size * seq_len
    n_nodes, per_node = max(1, n_gpus // node_size), min(n_gpus, node_size)
    rendezvous = (
        f" --nnodes {n_nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3" if n_nodes > 1 else ""
    )
    start = f"torchrun{rendezvous} --nproc-per-node {per_node} -m codekiln" if n_gpus > 1 else "codekiln"
    # Without it, restarted ranks of several nodes would meet in a store that still has the old ones.
    start = f"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 {start}" if n_nodes > 1 else start
    options = f" --tensor-parallel {settings.tensor_parallel}" if settings.tensor_parallel > 1 else ""
    options += " --activation-checkpointing" if settings.activation_checkpointing else ""
    options += "".join(f" --set {shlex.quote(override)}" for override in overrides)
    return f"{start} train {name} --out RUN --device cuda --micro-batch-tokens {micro_batch_tokens}{options}"


_HEADING = (
    "micro-batch ",
    "act. checkpointing",
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "peak",
    "fits",
    "s/step",
    "exposed comm",
    "tokens/s",
    "MFU",
)
