"""Joins four process groups one after the other, on two ranks that torchrun's agent started."""

from codekiln.train.parallel import init_distributed


def main() -> None:
    for _ in range(4):
        with init_distributed("cpu") as world:
            assert world.all_reduce_sum([1.0 + world.rank]) == [3.0]
