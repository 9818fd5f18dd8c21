"""The original downloads of weights: which file, where it is, and what to say when it is not there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from utils.fetching import NOTHING_KNOWN, Facts

CHECKPOINT_DIR = Path("checkpoints")  # the default of --checkpoint_dir


class CheckpointError(ValueError):
    """A weights file is missing or is not what it should be."""


@dataclass(frozen=True)
class Download:
    """An original download: its file name and the heading of its link in the README.

    name: what utils/download.py calls it, a backbone's name among the flags. urls: where it is; any of them will do.
    facts: of the file, as public code states them. page: where a person can click for it, if the urls fail.
    """

    file: str
    title: str
    name: str = ""
    urls: tuple[str, ...] = ()
    facts: Facts = NOTHING_KNOWN
    page: str = ""

    def path_in(self, folder: Path) -> Path:
        return folder / self.file

    def remedy(self, folder: Path = CHECKPOINT_DIR) -> str:
        """What to do when the file in `folder` is missing or is no good."""
        if not self.urls:
            return f"download '{self.title}' (README, 'Checkpoints') and put it there under this name"
        flag = "" if folder == CHECKPOINT_DIR else f" --checkpoint_dir {shlex.quote(str(folder))}"
        return f"run: python utils/download.py {self.name}{flag} (README, 'Checkpoints')"


def drive_url(file_id: str) -> str:
    """The address of a file on Google's drive, past its page on files too large to be scanned."""
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


def drive_page(file_id: str) -> str:
    """The page of a file on Google's drive, for a browser."""
    return f"https://drive.google.com/file/d/{file_id}/view"


_UFF_ID = "1Z2AkfPqenJEv-IdWhVdRcvVQAsJC4DxW"
UFF = Download("uff_pretrain.pth", "UFF module", "UFF", urls=(drive_url(_UFF_ID),), page=drive_page(_UFF_ID))
