"""Tests share two cores with other programs: OpenMP threads that wait sleep, as `codekiln` sets it before PyTorch loads."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
