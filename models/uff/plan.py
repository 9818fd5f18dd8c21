"""How long the fusion block is trained, and with which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

LARGEST_LR = 1
FEW_STEPS = 100  # the paper's best blocks had made some hundreds of optimiser steps


@dataclass(frozen=True)
class Schedule:
    """Learning rate by time in epochs: linear from 0 to `lr` in the warm-up, then half a cosine to `min_lr`."""

    lr: float
    min_lr: float
    warmup_epochs: float
    epochs: float

    def at(self, time: float) -> float:
        """The learning rate at `time`, which counts epochs and goes on within them."""
        if time < self.warmup_epochs:
            return self.lr * time / self.warmup_epochs
        done = (time - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.min_lr + (self.lr - self.min_lr) / 2 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Plan:
    """How long to train: optimiser steps in all and an epoch, batches that make a step, and the learning rate."""

    steps: int
    steps_per_epoch: int
    accum_iter: int
    schedule: Schedule

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.schedule.warmup_epochs * self.steps_per_epoch)

    def warning(self) -> str | None:
        """What to say when so few steps are made that the block can hardly learn."""
        if self.steps >= FEW_STEPS and self.warmup_steps >= self.steps:
            return (
                f"all {self.steps} optimiser steps lie in the warm-up of {self.warmup_steps}; lower --warmup_steps "
                "or --warmup_epochs"
            )
        if self.steps >= FEW_STEPS:
            return None
        warmup = min(self.steps, self.warmup_steps)
        return (
            f"only {self.steps} optimiser steps ({self.steps_per_epoch} an epoch with --accum_iter "
            f"{self.accum_iter}), {warmup} of them in the warm-up, where the paper made hundreds; try "
            "--max_steps 750 --warmup_steps 250, --accum_iter 1, or a smaller --batch_size"
        )


def make_plan(
    num_batches: int,
    *,
    accum_iter: int,
    epochs: int,
    max_steps: int | None,
    lr: float,
    min_lr: float,
    warmup_epochs: float,
    warmup_steps: int | None,
) -> Plan:
    """The plan for epochs of `num_batches`; steps, where given, decide instead of epochs.

    Raises ValueError for a learning rate above 1, at which AdamW's first step ruins the weights.
    """
    if lr > LARGEST_LR:
        raise ValueError(f"--lr {lr:g}: must be at most {LARGEST_LR}; the paper's is 0.003")
    steps_per_epoch = math.ceil(num_batches / accum_iter)
    steps = max_steps or epochs * steps_per_epoch
    if warmup_steps is not None:
        warmup_epochs = warmup_steps / steps_per_epoch
    return Plan(
        steps, steps_per_epoch, accum_iter, Schedule(lr, min_lr, warmup_epochs, steps / steps_per_epoch)
    )
