"""What a training leaves to look at: lines of JSON, TensorBoard scalars, a line on the screen."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from utils.files import naming, write_text
from utils.resources import peak_memory_mb, reset_peak_memory

LOG_NAME = "log.txt"


class TrainingLog:
    """Appends to `output_dir`/log.txt and to TensorBoard's files in `log_dir`; for one process only.

    The lines of `first_epoch` and later ones, which an earlier run has left, are taken out of log.txt: they come again.
    """

    def __init__(self, output_dir: Path, log_dir: Path, first_epoch: int = 0) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self._path = output_dir / LOG_NAME
        _drop_epochs(self._path, first_epoch)
        self._log_dir = log_dir
        threading.excepthook = _leave_to_the_writer
        with naming(log_dir):
            self._writer = SummaryWriter(log_dir=str(log_dir))

    def write_steps(self, first_step: int, scalars: Sequence[Mapping[str, float]]) -> None:
        """Scalars of successive optimiser steps, the first of which has the number `first_step`."""
        with naming(self._log_dir):
            for step, values in enumerate(scalars, first_step):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def write_epoch(self, record: Mapping[str, float | int | None]) -> None:
        """A line of log.txt and of the screen; scalars at `record["epoch"]` of what is known, not None."""
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        with naming(self._log_dir):
            for name, value in record.items():
                if value is not None:
                    self._writer.add_scalar(f"epoch/{name}", value, record["epoch"])
            self._writer.flush()
        print(", ".join(f"{name} {_short(value)}" for name, value in record.items()), flush=True)


def _leave_to_the_writer(failed: threading.ExceptHookArgs) -> None:
    """What its thread can't write, TensorBoard's writer raises at its next call; a traceback adds nothing to that."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def _drop_epochs(path: Path, first: int) -> None:
    """Keep only whole lines, and of those none of an epoch from `first` on."""
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8", errors="replace")
    kept = [
        line for line in content.splitlines(keepends=True) if line.endswith("\n") and _epoch(line) < first
    ]
    if "".join(kept) != content:
        write_text(path, "".join(kept))


def _epoch(line: str) -> int:
    """The epoch of a line that `write_epoch` wrote; of any other -1."""
    try:
        epoch = json.loads(line)["epoch"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return -1
    return epoch if isinstance(epoch, int) else -1


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_memory()


def peak_mb(device: torch.device) -> float | None:
    """Peak memory in MB (10^6 bytes) since the reset: torch's own on a GPU, else this process's."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory_mb()


def _short(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
