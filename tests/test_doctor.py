"""`codekiln doctor`: what this machine has, compared with what the system reports."""

import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from codekiln import doctor
from codekiln.doctor import Check, check_machine, report
from codekiln.machine import memory_bytes
from tests.command import codekiln


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def test_numbers_are_those_of_the_system(tmp_path: Path) -> None:
    checks = by_name(check_machine(tmp_path))
    assert checks["cores"].found == str(len(os.sched_getaffinity(0)))
    total = int(Path("/proc/meminfo").read_text(encoding="ascii").split("MemTotal:")[1].split()[0]) * 1024
    memory = memory_bytes()
    assert memory is not None and memory <= total * 1.001
    assert str(tmp_path) in checks["disk"].found and checks["disk"].status == "ok"
    assert checks["C++ compiler"].status == ("ok" if shutil.which("g++") or shutil.which("clang++") else "optional")
    assert checks["packages"] == Check(name="packages", found="installed", status="ok")


def test_every_extra_is_listed(tmp_path: Path) -> None:
    extras = metadata.metadata("codekiln").get_all("Provides-Extra") or []
    names = [check.name for check in check_machine(tmp_path) if check.name.startswith("extra ")]
    assert names == sorted(f"extra {extra}" for extra in extras)


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 10**18)
    checks = check_machine(tmp_path)
    found = by_name(checks)
    assert found["C++ compiler"].status == "optional" and "g++" in found["C++ compiler"].advice
    assert found["disk"].status == "missing" and "--out" in found["disk"].advice
    assert report(checks)["ok"] is False


def test_requirements_of_extras_are_followed() -> None:
    requirements = [
        Requirement("numpy>=1"),
        Requirement("no-such-package-a>=1"),
        Requirement("no-such-package-b; extra == 'one'"),
        Requirement("numpy>=999; extra == 'one'"),
        Requirement("codekiln[one]; extra == 'two'"),
        Requirement("no-such-package-c; python_version < '3'"),
        Requirement("pytest; extra == 'three'"),
    ]
    old = f"numpy>=999 (found {metadata.version('numpy')})"
    assert doctor._unmet(requirements, "") == ["no-such-package-a"]
    assert doctor._unmet(requirements, "one") == doctor._unmet(requirements, "two") == ["no-such-package-b", old]
    assert doctor._unmet(requirements, "three") == []


def test_command_prints_a_table_or_json_and_fails_if_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = codekiln("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"] is True
    assert {"name", "found", "status", "advice"} == set(found["checks"][0])
    table = codekiln("doctor").stdout
    assert all(check["name"] in table for check in found["checks"])
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 10**18)
    assert codekiln("doctor").returncode == 1
