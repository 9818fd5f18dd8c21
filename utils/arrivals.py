"""Parts that arrive in a folder, each once its files have stopped changing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from utils.formats.parts import Part, parts_anywhere

State = tuple[tuple[int, ...], ...]  # what the files of a part look like from outside


class Look(NamedTuple):
    """What a look at the folder shows: parts to judge now, all parts, and lines that were not said before."""

    ready: list[Part]
    present: list[Part]
    news: list[str]


@dataclass
class Arrivals:
    """A folder that is looked at again and again. A part is ready when its files are as they were at the look before,
    and again when they have changed since. The folder may be gone for a while.

    left_out: lines on the files that belonged to no part at the last two looks; one that is still to be paired may.
    """

    folder: Path
    left_out: list[str] = field(default_factory=list)
    _problems: list[str] = field(default_factory=list)
    _before: dict[str, State] = field(default_factory=dict)
    _done: dict[str, State] = field(default_factory=dict)
    _gone: bool = False

    def look(self) -> Look:
        """What is there now; the parts that are ready will not be so again unless they change."""
        news = self._come_or_gone()
        if self._gone:
            return Look([], [], news)
        found = parts_anywhere(self.folder)
        states = {part.name: state_of(part) for part in found.parts}
        ready = [part for part in found.parts if self._is_ready(part.name, states[part.name])]
        lasting = [line for line in found.problems if line in self._problems]
        news += [f"left out: {line}" for line in lasting if line not in self.left_out]
        self._problems, self.left_out = found.problems, lasting
        self._before = {name: state for name, state in states.items() if state is not None}
        self._done |= {part.name: self._before[part.name] for part in ready}
        return Look(ready, found.parts, news)

    def _is_ready(self, name: str, state: State | None) -> bool:
        return state is not None and state == self._before.get(name) and state != self._done.get(name)

    def _come_or_gone(self) -> list[str]:
        gone = not _is_folder(self.folder)
        changed, self._gone = gone != self._gone, gone
        words = "is gone; waiting for it to come back" if gone else "is back"
        return [f"{self.folder}: {words}"] if changed else []


def state_of(part: Part) -> State | None:
    """Of the files of a part; None when one is empty or gone again.

    Another file may come in the place of one, of equal size and time: its number, or the time of that, is another.
    """
    try:
        stats = [path.stat() for path in (part.xyz, part.rgb) if path is not None]
    except OSError:
        return None
    if not all(stat.st_size for stat in stats):
        return None
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
