"""Which process is at work on which class, so that the others can tell when one of them is gone."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from evaluation.team import Team
from utils.files import try_lock

PREFIX = ".at_work_"
DONE, STOPPED = "-", "!"  # in place of a class: all is done; ended because of another process
LOOK_EVERY_S = 0.2


class AtWork:
    """A small file a process, named by its rank, which tells its class and is locked while the process lives.

    On file systems without locks nobody is ever seen to be gone; the launcher then has to end the others.
    """

    def __init__(self, folder: Path, team: Team, file: IO[str], *, locks_work: bool) -> None:
        self._folder, self._team, self._file = folder, team, file
        self._locks_work = locks_work

    @classmethod
    @contextmanager
    def announced(cls, results: Path, team: Team) -> Iterator[AtWork]:
        """This process among all processes of its run, while the block runs.

        Raises ValueError when they don't see the same results folder.
        """
        folder = Path(team.from_leader(lambda: _new_folder(results)))
        if not folder.is_dir():
            raise ValueError(
                f"--results_dir {results}: process {team.place} does not see what process 0 writes there; "
                "use a folder that all machines share"
            )
        path = folder / str(team.place)
        with path.open("w", encoding="utf-8") as file:
            try_lock(file)
            try:
                yield cls(folder, team, file, locks_work=_is_locked(path))
            finally:
                if len(team.ranks) == 1:  # nobody looks at it
                    shutil.rmtree(folder, ignore_errors=True)

    def on(self, class_name: str) -> None:
        """This process now works on that class."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(class_name)
        self._file.flush()

    def done(self) -> None:
        """This process has no more to do; the first waits for the others. Raises ConnectionError when one is gone."""
        self.on(DONE)
        if not self._team.leads:
            return
        while not all(self._text(rank) == DONE for rank in self._others()):
            if any(self._is_gone(rank) for rank in self._others()):
                raise ConnectionError("another process has ended")
            time.sleep(LOOK_EVERY_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def lost(self) -> str:
        """What is to be said of the processes that are gone, and of their classes; "" when all are there.

        For a process that ends because of them: the others then don't name it.
        """
        size = len(self._team.ranks)
        gone = {rank: self._text(rank) for rank in self._others() if self._is_gone(rank)}
        self.on(STOPPED)
        return "; ".join(
            f"process {rank} of {size} ended{f' while it worked on {name}' if name else ''}"
            for rank, name in gone.items()
            if name != STOPPED
        )

    def _others(self) -> list[int]:
        return [rank for rank in self._team.ranks if rank != self._team.place]

    def _is_gone(self, rank: int) -> bool:
        path = self._folder / str(rank)
        there = path.exists()
        return self._locks_work and there and self._text(rank) != DONE and not _is_locked(path)

    def _text(self, rank: int) -> str:
        path = self._folder / str(rank)
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _new_folder(results: Path) -> str:
    """A folder for a run; those that killed runs have left go. Those of runs that live hold a lock."""
    for folder in results.glob(f"{PREFIX}*"):
        files = list(folder.iterdir())
        if files and not any(_is_locked(path) for path in files):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=PREFIX, dir=results)


def _is_locked(path: Path) -> bool:
    with path.open("a") as file:
        return not try_lock(file)
