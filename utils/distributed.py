"""One or several processes: who am I, and the few sums that the processes share.

Every function also works in a single process without a process group, where it communicates nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# Optimisers import it late. Its functions' default argument would then be the group that is there, so that group
# and its threads would live on after `leave`, into Python's end, where they now and then abort the process.
import torch.distributed.nn

# One for each of Gloo's two threads, which let go of a message a moment after it was summed. If nobody else held it
# they would need the interpreter for that, while `leave` waits for them without giving it up (torch 2.5 to 2.7 hang).
_last_messages: deque[torch.Tensor] = deque(maxlen=2)


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


def join(world: World, device: torch.device, dist_url: str) -> None:
    """Meet the other processes, if there are any: NCCL for CUDA, Gloo for the CPU.

    ValueError when `dist_url` is env:// and no launcher has set the meeting point, or when it is no address.
    """
    if world.size == 1:
        return
    if dist_url == "env://" and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ValueError(
            f"{world.size} processes, but MASTER_ADDR and MASTER_PORT are not set: set them to the first "
            "machine and a free port, or give --dist_url tcp://<first machine>:<port>"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, init_method=dist_url, rank=world.rank, world_size=world.size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--dist_url {dist_url}: the {world.size} processes can't meet there ({reason}); use "
            "tcp://<first machine>:<free port>, or env:// with a launcher"
        ) from error


def leave() -> None:
    """End what `join` began."""
    if _is_joined():
        dist.destroy_process_group()
        _last_messages.clear()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over all processes, the same bits in each; `value` itself stays as it is."""
    total = value.detach().clone()
    if _is_joined():
        _all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every parameter's gradient by its sum over all processes, in one message."""
    if not _is_joined():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([g.reshape(-1) for g in gradients])
    _all_reduce(message)
    for gradient, total in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows (n_r, d) of all processes in order of rank, and where one's own begin.

    The processes may have different numbers of rows. Gradients flow back: a row's gradient is the sum of
    the gradients that all processes have for it.
    """
    if not _is_joined():
        return rows, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    _all_reduce(counts)
    first = int(counts[: dist.get_rank()].sum())
    return _GatherRows.apply(rows, first, int(counts.sum())), first


class _GatherRows(torch.autograd.Function):
    """Own rows in a matrix of zeros, summed over the processes: a gathering that allows unequal shares."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, first: int, total: int) -> torch.Tensor:
        ctx.own = slice(first, first + len(rows))
        gathered = rows.new_zeros(total, rows.shape[1])
        gathered[ctx.own] = rows
        _all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return sum_over_ranks(grad.contiguous())[ctx.own], None, None


def _all_reduce(tensor: torch.Tensor) -> None:
    """The sum over all processes, in place. ConnectionError when another one has ended."""
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise ConnectionError(
            f"process {dist.get_rank()} of {dist.get_world_size()} lost another one; the first error of all "
            "processes says why"
        ) from error
    if tensor.device.type == "cpu":
        _last_messages.append(tensor)


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
