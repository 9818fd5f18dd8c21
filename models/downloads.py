"""The original downloads of weights: which file, and what to say when it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class CheckpointError(ValueError):
    """A weights file is missing or is not what it should be."""


@dataclass(frozen=True)
class Download:
    """An original download: its file name and the heading of its link in the README."""

    file: str
    title: str

    def path_in(self, folder: Path) -> Path:
        return folder / self.file

    def remedy(self) -> str:
        return f"download '{self.title}' (README, 'Checkpoints') and put it there under this name"
