"""The sandbox confines programs at each level, for each user, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codekiln.errors import ConfigError
from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.sandbox.attacks import escapes
from codekiln.evaluate.sandbox.check import KINDS, check_sandbox, set_bait
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.evaluate.sandbox.seccomp import assemble, program_filter, server_filter
from codekiln.evaluate.sandbox.slot import Level
from tests.small import PROGRAMS, ROOT

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")]

QUICK = tuple(kind for kind in KINDS if kind != "exhaustion")
LEVELS: tuple[Level, ...] = ("namespaces", "landlock")
ORDINARY_USER = 1500
ADDS = TestedProgram(source="def add(a, b):\n    return a + b\n", tests="assert add(1, 2) == 3", functions=("add",))
LOOPS = TestedProgram(source="while True:\n    pass\n", tests="", cpu_seconds=0.3)


def skip_without(level: Level) -> None:
    try:
        with Sandbox(slots=1, level=level):
            pass
    except ConfigError as error:
        pytest.skip(f"this machine does not have the level: {error}")


def run_check(command: list[str], *arguments: str, **options: Any) -> Any:
    """The result of a check in another process."""
    done = subprocess.run(
        [*command, str(PROGRAMS / "check_sandbox.py"), *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", ["split", "compat"])
def test_attacks_fail_and_legitimate_programs_pass(level: Level, mode: Any) -> None:
    skip_without(level)
    check = check_sandbox(slots=2, level=level, mode=mode, kinds=QUICK)
    assert check.is_passed, [row.wrong for row in check.rows]
    counts = {row.kind: row.n_attacks for row in check.rows}
    assert counts["fake success"] >= 17 and counts["escape"] >= 29 and counts["kernel surface"] >= 5
    assert counts["legitimate"] >= 15


@pytest.mark.parametrize("level", ["namespaces", pytest.param("landlock", marks=pytest.mark.slow)])
def test_programs_that_exhaust_resources_end_within_their_limits(level: Level) -> None:
    skip_without(level)
    check = check_sandbox(slots=2, level=level, kinds=["exhaustion"])
    assert check.is_passed and check.rows[0].n_attacks >= 22, check.rows


def test_the_escapes_work_where_nothing_confines_them() -> None:
    """The control: an attack that fails for another reason would prove nothing."""
    harmless = {"leaves shared memory", "renames a file", "deletes a file"}  # not: they would leave traces
    with set_bait() as bait, Sandbox(slots=1, mode="compat", level="limits") as sandbox:
        chosen = [attack for attack in escapes.attacks(bait) if attack.name not in harmless]
        verdicts = dict(sandbox.judge((k, attack.program) for k, attack in enumerate(chosen)))
    n_working = sum(verdict.is_passed for verdict in verdicts.values())
    assert n_working > (40 if os.getuid() == 0 else 25), [
        (attack.name, verdicts[k].error) for k, attack in enumerate(chosen) if not verdicts[k].is_passed
    ]


def ordinary_interpreter() -> str:
    """An interpreter that an ordinary user can run."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    for path in (sys.executable, "/usr/bin/python3"):
        try:
            done = subprocess.run(
                [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"],
                user=ORDINARY_USER,
                group=ORDINARY_USER,
                extra_groups=[],
                env={},
                cwd="/",
                check=False,
                capture_output=True,
            )
        except OSError:
            continue
        if done.returncode == 0 and ROOT.stat().st_mode & 0o005:
            return path
    pytest.skip("no interpreter of Python 3.11 is readable by an ordinary user")


@pytest.mark.parametrize("level", LEVELS)
def test_attacks_of_an_ordinary_user_fail(level: Level) -> None:
    skip_without(level)
    who = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
    result = run_check([ordinary_interpreter()], level, "split", *QUICK, cwd="/", **who)
    assert result["level"] == level and not result["wrong"]


@pytest.mark.parametrize("is_root", [True, False])
def test_without_user_namespaces_the_level_is_landlock(is_root: bool) -> None:
    skip_without("landlock")
    skip_without("namespaces")
    interpreter = sys.executable if is_root else ordinary_interpreter()
    who = {} if is_root else {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
    command = [interpreter, str(PROGRAMS / "without_user_namespaces.py"), interpreter]
    result = run_check(command, "auto", "split", *QUICK, cwd="/", **who)
    assert result["level"] == "landlock" and not result["wrong"]
    refused = run_check(command, "namespaces", "split", "legitimate", cwd="/", **who)
    assert "namespaces: " in refused["error"] and "limits" in refused["error"]


def test_a_level_that_confines_nothing_is_never_chosen_and_never_checked() -> None:
    with pytest.raises(ConfigError, match="confines nothing"):
        check_sandbox(level="limits")
    with Sandbox(slots=1, level="limits") as sandbox:
        assert sandbox.level == "limits"
        assert dict(sandbox.judge(enumerate([ADDS, LOOPS])))[1].status == "timeout"


@pytest.mark.parametrize("level", LEVELS)
def test_files_of_a_program_are_gone_for_the_next_one(level: Level) -> None:
    skip_without(level)
    leaves = TestedProgram(source="import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.chmod\n", tests="")
    empty = TestedProgram(source="import os\nassert os.listdir('.') == []\n", tests="")
    with Sandbox(slots=1, level=level) as sandbox:
        verdicts = dict(sandbox.judge(enumerate([leaves, empty] * 3)))
    assert all(verdict.is_passed for verdict in verdicts.values()), verdicts


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid` with their start times, which tell them from later ones with the same number."""
    parents: dict[int, int] = {}
    starts: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)], starts[int(path.parent.name)] = int(fields[1]), fields[19]
    found: dict[int, str] = {}
    for candidate in parents:
        above = candidate
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and candidate != pid:
            found[candidate] = starts[candidate]
    return found


def is_running(pid: int, start: str) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == start and fields[0] != "Z"


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, temporary file or mount may be left by a test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    children = descendants(os.getpid())
    yield
    assert list(tmp_path.iterdir()) == []
    assert "\nsandbox " not in Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert descendants(os.getpid()).keys() <= children.keys()


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_left_after_the_sandbox_is_closed(level: Level, clean: None) -> None:
    skip_without(level)
    sleeps = TestedProgram(
        source="import time\nopen('x', 'w').write('x')\ntime.sleep(100)\n", tests="", cpu_seconds=100
    )
    with Sandbox(slots=2, level=level) as sandbox:
        for n in range(5):
            sandbox.submit(n, sleeps)
        sandbox.submit(9, ADDS)
        time.sleep(0.3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_after_the_evaluator_dies(
    level: Level, number: signal.Signals, clean: None, tmp_path: Path
) -> None:
    skip_without(level)
    with subprocess.Popen(
        [sys.executable, str(PROGRAMS / "judge_and_wait.py"), level],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as evaluator:
        assert evaluator.stdout is not None and evaluator.stdout.readline() == "ready\n"
        time.sleep(0.3)
        started = descendants(evaluator.pid)
        assert len(started) >= 2 * 3  # guardians and servers, and programs
        evaluator.send_signal(number)
        evaluator.wait(30)
        deadline = time.monotonic() + 30
        while any(is_running(*entry) for entry in started.items()):
            assert time.monotonic() < deadline, "processes of the sandbox outlive the evaluator"
            time.sleep(0.05)
        while list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)


def test_a_server_that_dies_is_started_again_and_its_program_crashed(clean: None) -> None:
    with Sandbox(slots=1) as sandbox:
        for _ in range(2):
            (guardian,) = [pid for pid in descendants(os.getpid()) if is_guardian(pid)]
            sandbox.submit(0, TestedProgram(source="import time\ntime.sleep(100)", tests="", cpu_seconds=100))
            time.sleep(0.3)
            os.kill(min(descendants(guardian)), signal.SIGKILL)
            assert sandbox.collect()[1].status == "crashed"
            assert dict(sandbox.judge(enumerate([ADDS, ADDS])))[1].is_passed


def is_guardian(pid: int) -> bool:
    try:
        return b"sandbox.guardian" in Path(f"/proc/{pid}/cmdline").read_bytes() and bool(descendants(pid))
    except OSError:
        return False


def test_programs_are_taken_while_others_run() -> None:
    taken: list[int] = []

    def programs() -> Iterator[tuple[int, TestedProgram]]:
        for n in range(30):
            taken.append(n)
            yield n, ADDS

    with Sandbox(slots=2) as sandbox:
        verdicts = sandbox.judge(programs())
        next(verdicts)
        assert len(taken) <= 9  # at most four per slot wait
        assert sorted(index for index, _ in verdicts)[-1] == 29 and len(taken) == 30


def test_programs_can_be_submitted_from_another_thread() -> None:
    with Sandbox(slots=2) as sandbox:

        def submit() -> None:
            for n in range(10):
                sandbox.submit(n, ADDS)

        thread = threading.Thread(target=submit)
        thread.start()
        thread.join()
        assert sorted(sandbox.collect()[0] for _ in range(10)) == list(range(10))


def test_the_filters_of_both_architectures_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        for code in (server_filter(), program_filter(1)):
            assert len(assemble(code)) == 8 * len(code) < 8 * 4096  # the kernel's maximum
            for k, (operation, if_true, if_false, _) in enumerate(code):
                assert operation & 7 != 5 or k + 1 + max(if_true, if_false) < len(code)  # BPF_JMP stays inside


@pytest.mark.slow
def test_many_programs_at_once_change_no_verdict() -> None:
    programs = [ADDS, LOOPS, TestedProgram(source="def add(a, b):\n    return 0\n", tests=ADDS.tests)] * 20
    expected = ["passed", "timeout", "failed"] * 20
    with Sandbox(slots=8 * (os.cpu_count() or 1)) as sandbox:
        for _ in range(3):
            verdicts = dict(sandbox.judge(enumerate(programs)))
            assert [verdicts[n].status for n in range(len(programs))] == expected
