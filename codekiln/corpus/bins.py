"""Percentile bins of votes and stars, as in InCoder's metadata (section 3.1 and appendix A.2)."""

from bisect import bisect_left
from collections.abc import Mapping

N_BINS = 6


def percentile_bins(counts: Mapping[int, int]) -> tuple[int, ...]:
    """The largest value of each bin but the last, of values with their frequencies. Empty if there is no value.

    Bin 0 is up to the 50th percentile, then 75, 87.5, 93.75 and 96.875. A percentile is the smallest value that at least
    this part of all values do not exceed.
    """
    total, so_far = sum(counts.values()), 0
    edges: list[int] = []
    for value in sorted(counts):
        so_far += counts[value]
        # Bin k ends at 1 - 2^-(k+1). Whole numbers, so that nothing is rounded.
        while len(edges) < N_BINS - 1 and so_far << (len(edges) + 1) >= total * ((2 << len(edges)) - 1):
            edges.append(value)
    return tuple(edges)


def bin_of(value: int, edges: tuple[int, ...]) -> int:
    """The bin of a value, from 0 to 5, by the edges that `percentile_bins` returns."""
    return bisect_left(edges, value)
