"""Each file operation of a command in its turn: killed before it, or from there on a full disk or no permission."""

from __future__ import annotations

import errno
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.attacks import forked
from tests.attacks.commands import ROWS, Row
from tests.attacks.results import Snapshot, different, snapshot, temporaries, torn

COMPILER = shutil.which("cc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="preloads a library made by cc"),
]
OPERATIONS_A_MOMENT = 3  # so many of them for each moment of the kills
NEVER = 2**40
LONGEST_S = 300  # for one run of a command; then it counts as a hang
ON_WRITE, ON_OPEN, ON_NAME = 1, 2, 4  # kinds of operations, as interposer.c has them
ATTACKS = {
    "killed": (0, ON_WRITE | ON_OPEN | ON_NAME),
    "full disk": (errno.ENOSPC, ON_WRITE | ON_OPEN | ON_NAME),
    "no permission": (errno.EACCES, ON_OPEN | ON_NAME),
}
SINGLE = [name for name, row in ROWS.items() if not row.watched and not row.launcher]


class Ended(NamedTuple):
    """Exit status, number of operations, and all that the command has said."""

    status: int
    count: int
    said: str


class Server:
    """forked.py at work."""

    def __init__(self, interposer: Path, inputs: Path) -> None:
        self.inputs = inputs
        self.environment = os.environ | {"LD_PRELOAD": str(interposer), "OMP_NUM_THREADS": "1"}
        self.process = self._started()

    def run(
        self, row: Row, work: Path, operation: int = NEVER, attack: str = "killed", flags: str | None = None
    ) -> Ended:
        """One run of a row's command in `work`, which is attacked from an operation on."""
        script, *rest = row.arguments(self.inputs, work, alone=True, flags=flags)
        error, kinds = ATTACKS[attack]
        log = work.parent / "log"
        task = {"script": script, "flags": rest, "work": str(work), "log": str(log)}
        task |= {"operation": operation, "error": error, "kinds": kinds}
        line = self._answer(json.dumps(task))
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if not line:  # the next test gets a new one
            self.end()
            self.process = self._started()
            raise AssertionError(f"no answer, at least in {LONGEST_S} s; {attack} at {operation}; {said}")
        answer = json.loads(line)
        return Ended(answer["status"], answer["count"], said)

    def end(self) -> None:
        """Kill the server and the command that it runs."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(forked.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def _answer(self, task: str) -> str:
        """The line that answers a task; "" where none comes in time, or the server has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(task, file=self.process.stdin, flush=True)
        ready = select.select([self.process.stdout], [], [], LONGEST_S)[0]
        return self.process.stdout.readline() if ready else ""


@pytest.fixture(scope="module")
def server(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    library = tmp_path_factory.mktemp("library") / "interposer.so"
    source = Path(__file__).with_name("interposer.c")
    subprocess.run(
        [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    server = Server(library, inputs)
    yield server
    server.end()


class Before(NamedTuple):
    """A work folder as the attack finds it, what it holds, and what it holds after an undisturbed run."""

    work: Path
    earlier: Snapshot
    complete: Snapshot


def before(row: Row, server: Server, place: Path) -> Before:
    """Run what comes before the attack, and the command itself in a copy."""
    work = place / "before" / "work"
    work.mkdir(parents=True)
    row.prepare(server.inputs, work)
    if row.earlier is not None:
        ended = server.run(row, work, flags=row.earlier)
        assert ended.status == 0, ended.said
    earlier = snapshot(work)
    copy = shutil.copytree(work, place / "complete" / "work")
    ended = server.run(row, copy)
    assert ended.status == 0, ended.said
    return Before(work, earlier, snapshot(copy))


def chosen(count: int, moments: int, name: str) -> list[int]:
    """The operations to attack: all of them from 20 moments on, else some."""
    operations = list(range(1, count + 1))
    most = OPERATIONS_A_MOMENT * moments
    return operations if moments >= 20 else sorted(random.Random(name).sample(operations, min(most, count)))


def check_failure(ended: Ended, work: Path, state: Before, attack: str) -> None:
    """A failed command says why in one line, with a path, and leaves old or new files, none in between.

    Without permission it can't remove its temporaries either; the repeated command does.
    """
    found = snapshot(work)
    if ended.status == 0:
        assert different(found, state.complete) == [], ended.said
        return
    assert "Traceback" not in ended.said, ended.said
    errors = [line for line in ended.said.splitlines() if "error:" in line]
    assert len(errors) == 1, ended.said
    assert "out" in errors[0], ended.said
    assert torn(found, state.earlier, state.complete) == [], ended.said
    left = [name for name in temporaries(work) if not name.endswith((".part", ".partial"))]
    assert not left or attack == "no permission"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", SINGLE)
def test_a_command_attacked_at_any_file_operation_can_be_repeated(
    name, attack, server, moments, figures, tmp_path
):
    row = ROWS[name]
    state = before(row, server, tmp_path)
    count = server.run(row, shutil.copytree(state.work, tmp_path / "count" / "work"), attack=attack).count
    assert count > 0
    operations = chosen(count, moments, name)
    for operation in operations:
        work = shutil.copytree(state.work, tmp_path / "attacked" / "work")
        ended = server.run(row, work, operation, attack)
        if attack == "killed":
            assert ended.status == -9, ended.said
        else:
            check_failure(ended, work, state, attack)
        if not row.is_done(work):
            again = server.run(row, work)
            assert again.status == 0, f"operation {operation}: {again.said}"
        assert different(snapshot(work), state.complete) == [], f"operation {operation}"
        assert not temporaries(work)
        shutil.rmtree(work.parent)
    figures.append(f"{name}, {attack}: {len(operations)} of {count} operations")


def test_a_command_that_hangs_is_killed_and_the_next_one_has_a_new_server(server, tmp_path, monkeypatch):
    row, hung = ROWS["convert"], server.process
    tmp_path.joinpath("work").mkdir()
    monkeypatch.setattr(sys.modules[__name__], "LONGEST_S", 0)
    with pytest.raises(AssertionError, match="no answer"):
        server.run(row, tmp_path / "work")
    assert hung.returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert server.run(row, tmp_path / "work").status == 0
