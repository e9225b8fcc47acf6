"""What this machine has and what is missing, for `codekiln doctor`. Starts no other program and uses no network."""

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from codekiln.files import JsonObject
from codekiln.machine import find_cxx_compiler, memory_bytes, usable_cores

DISTRIBUTION = "codekiln"
MIN_PYTHON = (3, 11)
MIN_MEMORY_BYTES = 4_000_000_000  # the demo: 2 GB for building the corpus, and PyTorch
MIN_DISK_BYTES = 1_000_000_000  # the demo's run

# "missing": nothing works, or the demo does not. "optional": something that only some commands need.
Status = Literal["ok", "optional", "missing"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report. `advice` is how to get what is missing; empty if nothing is."""

    name: str
    found: str
    status: Status
    advice: str = ""


def check_machine(folder: Path) -> list[Check]:
    """All checks; `folder` is where runs would be written."""
    return [
        _python(),
        Check(name="system", found=f"{platform.system()} {platform.release()}, {platform.machine()}", status="ok"),
        Check(name="cores", found=f"{usable_cores()}", status="ok"),
        _memory(),
        _disk(folder),
        _compiler(),
        _cuda(),
        *_packages(),
    ]


def report(checks: list[Check]) -> JsonObject:
    """The checks as a record. "ok" is false if something needed is missing."""
    return {
        "codekiln": _installed_version(DISTRIBUTION) or "not installed as a package",
        "ok": all(check.status != "missing" for check in checks),
        "checks": [
            {"name": check.name, "found": check.found, "status": check.status, "advice": check.advice}
            for check in checks
        ],
    }


def _python() -> Check:
    found = platform.python_version()
    wanted = ".".join(map(str, MIN_PYTHON))
    if sys.version_info >= MIN_PYTHON:
        return Check(name="Python", found=found, status="ok")
    return Check(name="Python", found=found, status="missing", advice=f"install Python {wanted} or newer")


def _memory() -> Check:
    total = memory_bytes()
    if total is None:
        return Check(name="memory", found="unknown", status="ok")
    found = f"{total / 1e9:.1f} GB"
    if total >= MIN_MEMORY_BYTES:
        return Check(name="memory", found=found, status="ok")
    advice = f"the demo needs {MIN_MEMORY_BYTES / 1e9:.0f} GB; with less, lower --memory and --micro-batch-tokens"
    return Check(name="memory", found=found, status="optional", advice=advice)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free >= MIN_DISK_BYTES:
        return Check(name="disk", found=found, status="ok")
    advice = f"free {MIN_DISK_BYTES / 1e9:.0f} GB, or write runs elsewhere with --out"
    return Check(name="disk", found=found, status="missing", advice=advice)


def _compiler() -> Check:
    if path := find_cxx_compiler():
        return Check(name="C++ compiler", found=path, status="ok")
    install = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++, or dnf install gcc-c++"
    advice = f"{install}; without it, torch.compile is off on CPUs (about two thirds of the speed)"
    return Check(name="C++ compiler", found="none", status="optional", advice=advice)


def _cuda() -> Check:
    try:
        import torch  # noqa: PLC0415 - it takes a second, and may be what is missing
    except ImportError:
        return Check(name="CUDA", found="unknown without PyTorch", status="optional")
    if not torch.cuda.is_available():
        advice = "for a GPU: NVIDIA's driver, and the build of PyTorch that https://pytorch.org names for it"
        return Check(name="CUDA", found=f"none (PyTorch {torch.__version__})", status="optional", advice=advice)
    devices = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} with {device.total_memory / 1e9:.0f} GB" for device in devices)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Check(name="CUDA", found=found, status="ok")
    return Check(
        name="CUDA", found=found, status="optional", advice="training on CUDA needs bfloat16: an A100 or newer"
    )


def _packages() -> Iterator[Check]:
    """The packages that Codekiln always needs, and those of each extra, by the metadata of the installed package."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
        extras = sorted(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ())
    except metadata.PackageNotFoundError:
        advice = "pip install codekiln, or pip install --editable . in its folder"
        yield Check(name="package", found="codekiln is not installed as a package", status="missing", advice=advice)
        return
    needed = _unmet(requirements, "")
    yield _package_check("packages", needed, "missing", "pip install --upgrade codekiln")
    for extra in extras:
        advice = f"pip install 'codekiln[{extra}]'"
        yield _package_check(f"extra {extra}", _unmet(requirements, extra), "optional", advice)


def _package_check(name: str, unmet: list[str], status: Status, advice: str) -> Check:
    if not unmet:
        return Check(name=name, found="installed", status="ok")
    return Check(name=name, found=f"missing: {', '.join(unmet)}", status=status, advice=advice)


def _unmet(requirements: list[Requirement], extra: str) -> list[str]:
    """The requirements of an extra, or those without one, that are not installed or in another version."""
    unmet: set[str] = set()
    for requirement in requirements:
        in_general = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        is_wanted = (
            in_general
            if not extra
            else (not in_general and requirement.marker is not None and requirement.marker.evaluate({"extra": extra}))
        )
        if not is_wanted:
            continue
        if requirement.name == DISTRIBUTION:  # an extra that contains others
            for inner in requirement.extras:
                unmet.update(_unmet(requirements, inner))
            continue
        version = _installed_version(requirement.name)
        if version is None:
            unmet.add(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            unmet.add(f"{requirement.name}{requirement.specifier} (found {version})")
    return sorted(unmet)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
