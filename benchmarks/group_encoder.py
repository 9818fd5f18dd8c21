"""The group encoder of the point transformer: folded form against layer by layer, statistics of the cloud.

python benchmarks/group_encoder.py                   # one cloud, 1024 groups of 128, on the CPU
python benchmarks/group_encoder.py --device cuda
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.timing import compare, wait_for
from models.point_transformer.group_encoder import GroupEncoder
from models.point_transformer.point_ops import group_points
from tests.reference.formula import fill
from tests.reference.point_ops import wavy_surface
from tests.reference.point_transformer import plain_group_tokens

ENCODER_DIM = 384


@torch.inference_mode()
def run(
    num_group: int = 1024, group_size: int = 128, repeats: int = 5, device: str = "cpu"
) -> list[dict[str, Any]]:
    """One row; errors are relative, against the layers in float64."""
    encoder = fill(GroupEncoder(ENCODER_DIM), prefix="encoder.").to(device)
    found = group_points(wavy_surface(20000), num_group, group_size)
    groups = torch.from_numpy(found.groups).to(device)
    result = compare(
        lambda: _finished(plain_group_tokens(encoder, groups)),
        lambda: _finished(encoder(groups[None])[0]),
        repeats,
    )
    exact = plain_group_tokens(encoder.double(), groups.double())
    errors = [float((tokens - exact).norm() / exact.norm()) for tokens in (result.ours, result.plain)]
    size = f"{num_group} x {group_size} on {device}"
    return [result.row("group encoder", size, f"error {errors[0]:.0e}, plain {errors[1]:.0e}")]


def _finished(tokens: Tensor) -> Tensor:
    wait_for(tokens.device)
    return tokens


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=1024, help="groups (default %(default)s)")
    parser.add_argument("--group_size", type=int, default=128, help="points a group (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:i] (default %(default)s)")
    args = parser.parse_args()
    for row in run(args.groups, args.group_size, args.repeats, args.device):
        print(row)


if __name__ == "__main__":
    main()
