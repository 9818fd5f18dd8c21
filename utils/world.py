"""Which process this one is, of how many: from the variables that a launcher has set."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

FOLLOW_EVERY_S = 0.5
INIT = 1  # the process that takes over those whose parent is gone


@dataclass(frozen=True)
class World:
    """This process (rank) of how many (size); local_rank counts within the machine and chooses the GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def find_world(*, dist_on_itp: bool = False, world_size: int = 1, local_rank: int = -1) -> World:
    """Where this process stands, from the variables that its launcher has set.

    Known are ITP (Open MPI, when `dist_on_itp`), torchrun and torch.distributed.launch, and SLURM; without
    any of them the process is alone. `world_size` (SLURM's number of tasks unless it is > 1) and
    `local_rank` (when >= 0) stand in where the launcher leaves them open.
    """
    env = os.environ
    if dist_on_itp:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        missing = [name for name in names if name not in env]
        if missing:
            raise ValueError(f"--dist_on_itp: the environment lacks {', '.join(missing)}; start with mpirun")
        return World(*(_number(name) for name in names))
    if "RANK" in env and "WORLD_SIZE" in env:
        return World(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", max(local_rank, 0)))
    if "SLURM_PROCID" in env:
        size = world_size if world_size > 1 else _number("SLURM_STEP_NUM_TASKS", 1)
        return World(_number("SLURM_PROCID"), size, _number("SLURM_LOCALID", 0))
    return World()


def _number(variable: str, default: int = 0) -> int:
    """An environment variable that a launcher sets."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(f"{variable}={text}: the launcher sets this variable to a whole number; unset it")
    return int(text)


def end_with_launcher() -> None:
    """End this process when torch's launcher is gone, which can't end it any more when it has been killed."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    if launcher == INIT and not _is_a_launcher(INIT):
        os._exit(1)  # it was killed while this process started
    threading.Thread(target=_follow, args=(launcher,), daemon=True).start()


def _is_a_launcher(process: int) -> bool:
    """Whether it is torch's, as in a container that runs nothing else; so where that can't be seen."""
    try:
        return b"torch" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(FOLLOW_EVERY_S)
    os._exit(1)
