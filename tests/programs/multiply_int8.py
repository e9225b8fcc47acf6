"""The product of FOLDER/input.npz with int8 weights, to FOLDER/output.npy, as on a processor with only FEATURE, or none."""

import sys
from pathlib import Path

import llvmlite.binding
import numpy as np
import torch

folder, feature = Path(sys.argv[1]), sys.argv[2]
llvmlite.binding.get_host_cpu_features = lambda: {feature: True}

from codekiln.model.decoder import Int8Linear  # noqa: E402 - its kernels look at the features

data = np.load(folder / "input.npz")
np.save(folder / "output.npy", Int8Linear(torch.from_numpy(data["weight"]), None)(torch.from_numpy(data["x"])).numpy())
