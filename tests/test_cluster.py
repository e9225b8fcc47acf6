"""Files for clusters: Slurm, Kubernetes and Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from codekiln.metrics_log import read_metrics
from tests.small import ROOT, program_environment, write_tree
from tests.test_corpus_engine import ray_cluster
from tests.test_docs import parse_command

CLUSTER = ROOT / "docs" / "cluster"
MANIFESTS: dict[str, dict[str, Any]] = {
    f"{path.name}: {manifest['kind']}": manifest
    for path in sorted(CLUSTER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
TINY: dict[str, object] = {
    "tokenizer.vocab_size": 384, "train.initialization": "codekiln", "model.attention_layers": "[0]", "model.n_layers": 1,
    "model.vocab_size": 384, "model.d_model": 32, "model.n_heads": 2,
    "model.n_kv_heads": 1, "model.d_head": 16, "model.d_ff": 64, "model.context_length": 256, "train.total_tokens": 2048,
    "train.global_batch_size": 4, "train.eval_sequences": 4, "min_free_bytes": 1_000_000,
}  # fmt: skip


def train_arguments(tmp_path: Path) -> list[str]:
    """A tiny training on two ranks, to its last checkpoint."""
    code = write_tree(tmp_path / "code")
    sets = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    run = ["--code", str(code), "--license", "MIT", "--out", str(tmp_path / "run"), "--stop-after", "train"]
    return ["demo", *run, "--no-compile", *sets]


def assert_trained(run: Path) -> None:
    """All steps were trained, on two ranks."""
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]


def test_slurm_script_has_no_findings() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [program, "--severity=style", CLUSTER / "train.sbatch"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_slurm_script_trains_on_two_ranks(tmp_path: Path) -> None:
    """Slurm is not here: two small programs stand for `scontrol` and `srun` on one node. torchrun and the training are real."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in (("scontrol", "echo 127.0.0.1"), ("srun", 'shift; exec "$@"')):
        (programs / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", CLUSTER / "train.sbatch", *train_arguments(tmp_path)],
        env=program_environment(
            PATH=path, SLURM_JOB_NODELIST="here", SLURM_JOB_NUM_NODES="1", SLURM_GPUS_ON_NODE="2", SLURM_JOB_ID="7",
            RENDEZVOUS_PORT="0", OMP_NUM_THREADS="1",
        ),
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert_trained(tmp_path / "run")


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_manifest_has_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_commands_of_manifests_are_accepted(manifest: dict[str, Any]) -> None:
    if "template" in manifest["spec"]:
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        words = container["args"]
        parse_command(words[words.index("codekiln") + 1 :] if "codekiln" in words else words)


def test_pods_of_the_job_find_the_first_one() -> None:
    service, job = MANIFESTS["train.yaml: Service"], MANIFESTS["train.yaml: Job"]
    name, pod = service["metadata"]["name"], job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == name
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{name}:29500" in container["args"]
    nodes = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == nodes and f"--nnodes={nodes}" in container["args"]


@pytest.mark.slow
def test_ray_script_trains_on_two_nodes(tmp_path: Path) -> None:
    """A real Ray cluster with two nodes of one processor."""
    with ray_cluster() as address:
        done = subprocess.run(
            [sys.executable, CLUSTER / "ray_train.py", "--nodes=2", "--processes=1", "--", *train_arguments(tmp_path)],
            env=program_environment(RAY_ADDRESS=address, RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1"),
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert_trained(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text(encoding="utf-8"))["name"] == "demo"
