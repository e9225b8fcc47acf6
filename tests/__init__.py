"""Tests share two cores with other programs: OpenMP threads that wait sleep. Read when PyTorch is loaded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
