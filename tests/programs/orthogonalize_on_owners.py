"""Compares `apply_on_owner_rank` with the same work in one process, on three ranks that torchrun's agent started."""

import torch
from torch import Tensor
from torch.distributed.tensor import Shard, distribute_tensor

from codekiln.train.optimizer import orthogonalize
from codekiln.train.parallel import apply_on_owner_rank, init_distributed


def main() -> None:
    with init_distributed("cpu") as world:
        assert world.mesh is not None
        mesh = world.mesh["data"]
        for n, shape in ((4, (7, 5)), (2, (2, 6)), (3, (9, 9)), (7, (4, 3))):
            torch.manual_seed(n)
            full = torch.randn(n, *shape)
            sharded = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in full]
            expected = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in orthogonalize(full)]
            counts: list[int] = []

            def counted(matrices: Tensor, counts: list[int] = counts) -> Tensor:
                counts.append(len(matrices))
                return orthogonalize(matrices)

            found = apply_on_owner_rank(counted, sharded)
            assert sum(counts) == len(range(world.rank, n, 3)), counts
            for part, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(part, wanted.to_local(), rtol=1e-5, atol=1e-6)
