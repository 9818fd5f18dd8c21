"""For test_distributed.py, under torchrun: are the group's threads gone after it was left?"""

from pathlib import Path

import torch

from utils.distributed import join, leave, sum_over_ranks
from utils.world import find_world


def _has_group_threads() -> bool:
    return any("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def main() -> None:
    join(find_world(), "gloo", "env://")
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])  # its first step imports much of torch
    parameter.grad = sum_over_ranks(torch.ones(3))
    optimizer.step()
    during = _has_group_threads()
    leave()
    print(f"during: {during}, after: {_has_group_threads()}\n", end="")


if __name__ == "__main__":
    main()
