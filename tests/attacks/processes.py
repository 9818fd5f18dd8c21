"""Commands as real processes, ended at a random moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.attacks.commands import Row

MARK = "M3DM_ATTACK"  # in the environment of a command and of all that it starts, in whatever group
PATIENCE_S = 120
ORPHANS_S = 20  # in which processes notice that the first one was killed
LOOK_EVERY_S = 0.01
HOWS = [(how, everyone) for everyone in (True, False) for how in (signal.SIGKILL, signal.SIGTERM)]


@dataclass
class Started:
    """A command at work; its output goes to `log`. After a `with` block nothing of it lives."""

    row: Row
    work: Path
    inputs: Path
    log: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        command = [sys.executable, "-u", *self.row.arguments(self.inputs, self.work)]
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTEST_CURRENT_TEST", None)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=self.work, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.living():  # once more: one may have started another meanwhile
            self.end(signal.SIGKILL, everyone=True)
            time.sleep(LOOK_EVERY_S)
        self.process.wait()

    def wait(self) -> int:
        """Wait for the end, which Ctrl-C brings where the command watches a folder; the exit status."""
        end = time.monotonic() + PATIENCE_S
        while self.row.watched and self.process.poll() is None and time.monotonic() < end:
            if self.log.read_text(encoding="utf-8").count(" ms\n") >= self.row.watched:
                time.sleep(0.2)  # it goes on to watch
                self.process.send_signal(signal.SIGINT)
                break
            time.sleep(LOOK_EVERY_S)
        return self.process.wait(PATIENCE_S)

    def living(self) -> list[int]:
        """All processes that the command has started and that live, itself too."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # ended meanwhile, or of someone else
        return found

    def end(self, how: signal.Signals, everyone: bool) -> None:
        """Send the signal to all processes or to the first one alone."""
        for pid in self.living() if everyone else [self.process.pid]:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue

    def left(self) -> list[int]:
        """The processes that live on long after the command has ended."""
        end = time.monotonic() + ORPHANS_S
        while (pids := self.living()) and time.monotonic() < end:
            time.sleep(LOOK_EVERY_S)
        return pids


@dataclass(frozen=True)
class Course:
    """How an undisturbed run went: seconds until its first file, and until its end."""

    first_file_s: float
    end_s: float

    def moment(self, rng: random.Random) -> tuple[bool, float]:
        """Whether to wait for the first file, and how long after that, or after the start."""
        if rng.random() < 0.2:
            return False, rng.uniform(0, self.end_s)
        return True, rng.uniform(0, self.end_s - self.first_file_s)


def files_in(folder: Path) -> int:
    """A number that changes when a file comes or goes."""
    return sum(len(names) + len(folders) for _, folders, names in os.walk(folder))


def wait_for_a_file(started: Started) -> None:
    """Until the command has written something, or has ended."""
    before, end = files_in(started.work), time.monotonic() + PATIENCE_S
    while started.process.poll() is None and files_in(started.work) == before and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)


def undisturbed(row: Row, work: Path, inputs: Path, log: Path) -> Course:
    """A run without an attack."""
    start = time.monotonic()
    with Started(row, work, inputs, log) as started:
        wait_for_a_file(started)
        first = time.monotonic() - start
        assert started.wait() == 0, log.read_text(encoding="utf-8")
        assert not started.left()
    return Course(first, time.monotonic() - start)


def ended_at(started: Started, moment: tuple[bool, float], how: signal.Signals, everyone: bool) -> bool:
    """End the command at the moment; whether it was still at work."""
    after_first_file, seconds = moment
    if after_first_file:
        wait_for_a_file(started)
    end = time.monotonic() + seconds
    while started.process.poll() is None and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
    if started.process.poll() is not None:
        return False
    started.end(how, everyone)
    started.process.wait(PATIENCE_S)
    return True
