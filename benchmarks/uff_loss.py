"""UFF's loss in row blocks against the plain N x N loss: time and peak memory of forward and backward.

python benchmarks/uff_loss.py [--sizes 4096 8192 16384] [--repeats 3]

Each size is measured twice: with an rgb patch for every xyz patch, and with one for four, as in training, where
28x28 rgb patches stand beside 56x56 xyz patches. Peak memory is what a fresh process needs above its inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.nn import functional as F

from benchmarks.timing import compare
from models.uff.block import HEAD_DIM
from models.uff.loss import contrastive_loss
from tests.reference.uff import plain_contrastive_loss
from utils.resources import peak_memory_mb, reset_peak_memory

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Gradients = tuple[torch.Tensor, ...]
WARM_UP_PAIRS = 64


def plain(queries: torch.Tensor, keys: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return plain_contrastive_loss(queries[index], keys)


LOSSES: dict[str, Loss] = {"plain": plain, "ours": contrastive_loss}


def make_pairs(size: int, shared_by: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit queries, unit keys and the query of each key, with which it has much in common."""
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(size // shared_by, HEAD_DIM, generator=rng)
    index = torch.arange(size) // shared_by
    keys = queries[index] + torch.randn(size, HEAD_DIM, generator=rng)
    return F.normalize(queries, dim=1).requires_grad_(), F.normalize(keys, dim=1).requires_grad_(), index


def extra_memory_mb(name: str, size: int, shared_by: int) -> float:
    """Peak memory of forward and backward above what was in use before them; for a fresh process."""
    pairs = make_pairs(size, shared_by)
    LOSSES[name](*make_pairs(WARM_UP_PAIRS, 1)).backward()  # the libraries' own memory
    reset_peak_memory()
    before = peak_memory_mb() or 0.0
    LOSSES[name](*pairs).backward()
    return (peak_memory_mb() or 0.0) - before


def largest_difference(plain_gradients: Gradients, our_gradients: Gradients) -> float:
    """Of the gradients, as a share of the largest."""
    pairs = zip(plain_gradients, our_gradients, strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def measure(size: int, shared_by: int, repeats: int) -> dict[str, Any]:
    pairs = make_pairs(size, shared_by)

    def gradients(loss: Loss) -> Gradients:
        return torch.autograd.grad(loss(*pairs), pairs[:2])

    result = compare(lambda: gradients(plain), lambda: gradients(contrastive_loss), repeats)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(extra_memory_mb, (name, size, shared_by)) for name in LOSSES}
    part = "UFF loss" + (f", an rgb patch shared by {shared_by}" if shared_by > 1 else "")
    difference = largest_difference(result.plain, result.ours)
    row = result.row(part, f"N = {size}", f"gradients within {difference:.0e} of the largest")
    ratio = memory["plain"] / memory["ours"]
    return row | {"peak_memory": f"{memory['plain']:.0f} -> {memory['ours']:.0f} MB ({ratio:.0f}x)"}


def run(sizes: tuple[int, ...] = (4096, 8192, 16384), repeats: int = 3) -> list[dict[str, Any]]:
    return [measure(size, shared_by, repeats) for size in sizes for shared_by in (1, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[4096, 8192, 16384], help="numbers of pairs N"
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for row in run(tuple(args.sizes), args.repeats):
        print(row)


if __name__ == "__main__":
    main()
