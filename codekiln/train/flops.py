"""The speed limit of a machine: the fastest matrix product that it computes."""

import math
import time

import torch


def measure_peak_flops(device: torch.device, dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest matrix product seen within `seconds`. Other work on the machine lowers it."""
    size = size if device.type == "cpu" else 8 * size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, start = math.inf, time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        for _ in range(4):
            product = a @ b
        if device.type != "cpu":
            product.sum().item()  # waits for the device
        best = min(best, (time.perf_counter() - begin) / 4)
    return 2 * size**3 / best
