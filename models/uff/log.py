"""What a training leaves to look at: lines of JSON, TensorBoard scalars, a line on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from utils.resources import peak_memory_mb, reset_peak_memory

LOG_NAME = "log.txt"


class TrainingLog:
    """Appends to `output_dir`/log.txt and to TensorBoard's files in `log_dir`; for one process only."""

    def __init__(self, output_dir: Path, log_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self._path = output_dir / LOG_NAME
        self._writer = SummaryWriter(log_dir=str(log_dir))

    def write_steps(self, first_step: int, scalars: Sequence[Mapping[str, float]]) -> None:
        """Scalars of successive optimiser steps, the first of which has the number `first_step`."""
        for step, values in enumerate(scalars, first_step):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def write_epoch(self, record: Mapping[str, float | int | None]) -> None:
        """A line of log.txt and of the screen; scalars at `record["epoch"]` of what is known, not None."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            for name, value in record.items():
                if value is not None:
                    self._writer.add_scalar(f"epoch/{name}", value, record["epoch"])
            self._writer.flush()
        except OSError as error:
            raise OSError(f"{self._path}: can't be written ({error}); is the disk full?") from error
        print(", ".join(f"{name} {_short(value)}" for name, value in record.items()), flush=True)


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
