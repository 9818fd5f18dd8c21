"""Which process is at work on which class, so that the others can tell when one of them is gone."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from evaluation.team import Team
from utils.files import TEMPORARY_PREFIX, try_lock
from utils.results import others_waiting

PREFIX = ".at_work_"
LOCK = "at_work"  # who makes or removes the folder
DONE, STOPPED = "-", "!"  # in place of a class: all is done; ended because of another process
LOOK_EVERY_S = 0.2
SEEN_AFTER_S = 3.0  # a killed process's loaders hold its lock until they have noticed


class AtWork:
    """A small file a process, named by its rank, which tells its class and is locked while the process lives.

    On file systems without locks nobody is ever seen to be gone; the launcher then has to end the others. A process
    that is alone has no file.
    """

    def __init__(self, team: Team, file: IO[str] | None = None, *, locks_work: bool = False) -> None:
        self._team, self._file = team, file
        self._folder = Path(file.name).parent if file else Path()
        self._locks_work = locks_work

    @classmethod
    @contextmanager
    def announced(cls, results: Path, team: Team) -> Iterator[AtWork]:
        """This process among all processes of its run, while the block runs.

        Raises ValueError when they don't see the same results folder, and ConnectionError when one is gone already.
        """
        if team.leads:
            _sweep(results)
        if len(team.ranks) == 1:
            yield cls(team)
            return
        with ExitStack() as held:
            file = _own_file(results, team, held)
            locks_work = _is_locked(Path(file.name))
            team.meet()  # from now on a file that is not there means that its process has failed
            yield cls(team, file, locks_work=locks_work)

    def on(self, class_name: str) -> None:
        """This process now works on that class."""
        if self._file:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(class_name)
            self._file.flush()

    def done(self) -> None:
        """This process has no more to do; the first waits for the others. Raises ConnectionError when one is gone."""
        self.on(DONE)
        if not self._team.leads or not self._file:
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
        self.on(STOPPED)
        gone = self._gone()
        end = time.monotonic() + SEEN_AFTER_S
        while not gone and time.monotonic() < end and any(self._text(r) != STOPPED for r in self._others()):
            time.sleep(LOOK_EVERY_S)
            gone = self._gone()
        size = len(self._team.ranks)
        return "; ".join(
            f"process {rank} of {size} ended{f' while it worked on {name}' if name else ''}"
            for rank, name in gone.items()
        )

    def _gone(self) -> dict[int, str]:
        """Rank and class of those that are gone, and not because of others."""
        gone = {rank: self._text(rank) for rank in self._others() if self._is_gone(rank)}
        return {rank: name for rank, name in gone.items() if name != STOPPED}

    def _others(self) -> list[int]:
        """The other ranks; the team is everyone, so that a place in it is a rank."""
        return [rank for rank in self._team.ranks if rank != self._team.place]

    def _is_gone(self, rank: int) -> bool:
        path = self._folder / str(rank)
        if not path.exists():
            return self._team.leads  # which alone removes the folder, at its end
        # the lock first: a process writes that all is done before it ends
        return self._locks_work and not _is_locked(path) and self._text(rank) != DONE

    def _text(self, rank: int) -> str:
        path = self._folder / str(rank)
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _own_file(results: Path, team: Team, held: ExitStack) -> IO[str]:
    """This process's locked file in the folder that the leader makes; `held` closes it.

    No other run removes the folder while it is made: it is done with the lock that `_sweep` takes. From then on the
    leader's file keeps it. Raises ValueError when the folder can't be seen.
    """

    def opened(folder: Path) -> IO[str]:
        file = held.enter_context((folder / str(team.place)).open("w", encoding="utf-8"))
        try_lock(file)
        return file

    files = []

    def make() -> str:
        with others_waiting(results, LOCK):
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=results)
            files.append(opened(Path(folder)))
        return folder

    folder = Path(team.from_leader(make))
    if not folder.is_dir():
        raise ValueError(
            f"--results_dir {results}: process {team.place} does not see what process 0 writes there; "
            "use a folder that all machines share"
        )
    return files[0] if team.leads else opened(folder)


def _sweep(results: Path) -> None:
    """Remove what killed runs have left. Those of runs that live hold a lock, where there are any."""
    with others_waiting(results, LOCK):
        for folder in results.glob(f"{PREFIX}*"):
            with suppress(OSError):  # its run has just removed it
                if _locks_work(results) and not any(_is_locked(path) for path in folder.iterdir()):
                    shutil.rmtree(folder, ignore_errors=True)


def _locks_work(folder: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMPORARY_PREFIX) as file:
        try_lock(file)
        return _is_locked(Path(file.name))


def _is_locked(path: Path) -> bool:
    """Whether a process holds the file; several may ask at once."""
    with path.open("r") as file:
        return not try_lock(file, shared=True)
