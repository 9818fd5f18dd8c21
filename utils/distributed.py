"""Several processes: how they meet and part, and the few sums that they share.

Every function also works in a single process without a process group, where it communicates nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist

# Optimisers import it late. Its functions' default argument would then be the group that is there, so that group
# and its threads would live on after `leave`, into Python's end, where they now and then abort the process.
import torch.distributed.nn

from utils.resources import shortage_named
from utils.world import World

# Gloo's two threads let go of a message a moment after it was sent. If nobody else held it they would need the
# interpreter for that, while `destroy_process_group` waits for them without giving it up (torch 2.5 to 2.7 hang). So
# the last sums are held here, and other messages are given a moment.
LET_GO_S = 0.1
_last_messages: deque[torch.Tensor] = deque(maxlen=2)


def join(
    world: World,
    backend: Literal["nccl", "gloo"],
    dist_url: str = "env://",
) -> None:
    """Meet the other processes, if there are any; nccl talks between GPUs, gloo between CPUs.

    ValueError when `dist_url` is env:// and no launcher has set the meeting point, or when it is no address.
    """
    if world.size == 1:
        return
    if dist_url == "env://" and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ValueError(
            f"{world.size} processes, but MASTER_ADDR and MASTER_PORT are not set: set them to the first "
            "machine and a free port, or give --dist_url tcp://<first machine>:<port>"
        )
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
        time.sleep(LET_GO_S)
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
    with lost_process():
        dist.all_reduce(tensor)


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def lost_process() -> Iterator[None]:
    """Around talk with other processes. ConnectionError when another one has ended; MemoryError."""
    try:
        with shortage_named():
            yield
    except RuntimeError as error:
        raise ConnectionError(
            f"process {dist.get_rank()} of {dist.get_world_size()} lost another one; the first error of all "
            "processes says why"
        ) from error
