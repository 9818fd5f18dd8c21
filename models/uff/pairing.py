"""Which rgb patch stands beside which xyz patch."""

from __future__ import annotations

from typing import Literal

import torch

Pairing = Literal["colocated", "scrambled"]


def paired_rgb(pairing: Pairing, rgb_side: int, xyz_side: int) -> torch.Tensor:
    """The rgb patch beside each xyz patch, (xyz_side^2,) int64.

    "colocated" is nearest upsampling, which AdaptiveAvgPool2d does for whole ratios; "scrambled" is how the
    released code saved its training features: with p = rgb_side^2 patches and f = xyz_side^2 / p, xyz row
    k*p + j stands beside rgb patch (f*j + k) mod p. ValueError unless the ratio of the sides is whole.
    """
    if xyz_side % rgb_side:
        raise ValueError(f"an xyz grid of side {xyz_side} is no multiple of the rgb grid's {rgb_side}")
    if pairing == "scrambled":
        num_rgb, num_xyz = rgb_side**2, xyz_side**2
        row = torch.arange(num_xyz)
        return (num_xyz // num_rgb * (row % num_rgb) + row // num_rgb) % num_rgb
    axis = torch.arange(xyz_side) // (xyz_side // rgb_side)
    return (axis[:, None] * rgb_side + axis).flatten()
