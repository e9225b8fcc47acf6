"""Estimates for the published sizes on accelerators: the table of docs/planning.md.

Run: `python benchmarks/plan_sizes.py`. It takes about 15 minutes on one core. Each row is the best setting that `codekiln
plan` finds.
"""

from codekiln.planning.summary import estimate_recipe
from codekiln.recipes import get_recipe

ROWS = (
    ("codegen-350M", "h100", 8, 1),
    ("codegen-2B", "h100", 64, 1),
    ("codegen-6B", "h100", 128, 1),
    ("codegen-16B", "h100", 512, 1),
    ("codegen-16B", "h100", 512, 8),
    ("codegen-16B", "a100", 256, 1),
    ("codegen-16B", "tpu-v4-like", 512, 1),
    ("incoder-1B", "a100", 64, 1),
    ("incoder-6B", "a100", 64, 1),
    ("incoder-6B", "v100", 248, 1),
)


def main() -> None:
    print(
        "| recipe | devices | of a layer | rows at once, recompute | weights | gradients | moments | activations | peak GB | "
        "gathered and scattered GB | tokens/s | MFU | days | $ |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, accelerator, n_gpus, tensor_parallel in ROWS:
        found = estimate_recipe(get_recipe(name), accelerator, n_gpus, tensor_parallel)
        start = f"| {name} | {n_gpus} {accelerator} | {tensor_parallel} |"
        best = found["best"]
        if best is None:
            print(f"{start} nothing fits |" + " |" * 10, flush=True)
            continue
        entry = found["settings"][best["settings"]]
        traffic = sum(part["bytes"] for part in entry["collectives"]) / 1e9
        cells = [
            f"{entry['micro_batch_size']}, {'yes' if entry['activation_checkpointing'] else 'no'}",
            *(f"{n_bytes / 1e9:.1f}" for n_bytes in entry["bytes"].values()),
            f"{traffic:.1f}",
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['mfu']:.0%}",
            f"{sum(stage['days'] for stage in best['stages']):,.1f}",
            f"{sum(stage['dollars'] for stage in best['stages']):,.0f}",
        ]
        print(f"{start} {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
