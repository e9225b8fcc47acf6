"""Runs `codekiln train` on the nodes of a Ray cluster, with one torchrun per node.

    python ray_train.py --nodes 2 --processes 8 -- incoder-1B --out runs/incoder --data DATA --device cuda

What follows `--` are the arguments of `codekiln train`. All nodes must see the folders by the same paths. RAY_ADDRESS is the
address of the cluster. Exits with 1 if a node fails; run the same command again to resume.
"""

import argparse
import os
import socket
import subprocess
import sys
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


class Node:
    """A node of the cluster, from which torchrun starts its ranks."""

    def rendezvous(self) -> str:
        """The address and a free port of this node."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"  # type: ignore[no-untyped-call]

    def run(self, command: list[str]) -> int:
        """Runs a command to its end. Returns its exit status."""
        environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.run([sys.executable, *command], env=environment, check=False).returncode


def main() -> None:
    """Reserves the nodes, starts torchrun on each, and waits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True, help="ranks per node: its GPUs")
    parser.add_argument("arguments", nargs="+", help="the arguments of `codekiln train`, after --")
    options = parser.parse_args()

    ray.init(address="auto")
    kind = "GPU" if "cuda" in options.arguments else "CPU"
    group = placement_group([{kind: options.processes}] * options.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    actor = ray.remote(Node)
    nodes: list[Any] = [
        actor.options(
            num_cpus=options.processes if kind == "CPU" else 0,
            num_gpus=options.processes if kind == "GPU" else 0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=k),
        ).remote()
        for k in range(options.nodes)
    ]
    command = ["-m", "torch.distributed.run", f"--nnodes={options.nodes}", f"--nproc-per-node={options.processes}"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ray.get(nodes[0].rendezvous.remote())}", "--rdzv-id=codekiln"]
    program = ["-m", "codekiln", "train", *options.arguments]
    # The first node is the host of the rendezvous by its number: torchrun's own test compares names and addresses.
    hosts = [f"--rdzv-conf=is_host={str(k == 0).lower()}" for k in range(options.nodes)]
    statuses = ray.get([node.run.remote([*command, host, *program]) for node, host in zip(nodes, hosts, strict=True)])
    sys.exit(1 if any(statuses) else 0)


if __name__ == "__main__":
    main()
