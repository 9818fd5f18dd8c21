"""Weights by formula: a parameter's values follow from its state-dict name and shape alone.

The noise comes from NumPy's PCG64 seeded with the CRC-32 of the name, so the networks are the same on every
machine and with every library version, and arrays computed with them elsewhere can be compared.
"""

from __future__ import annotations

import zlib
from math import prod, sqrt
from typing import TypeVar

import numpy as np
import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def formula_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the state-dict entry `name`: float32, except a counter of batches, which is int64 zero."""
    last_part = name.rpartition(".")[2]
    if last_part == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = generator.standard_normal(shape)
    if last_part == "running_var":
        values = 1 + 0.1 * np.abs(noise)
    elif last_part in ("running_mean", "bias", "cls_pos"):
        values = 0.1 * noise
    elif last_part == "weight":
        is_scale = len(shape) == 1
        values = 1 + 0.1 * noise if is_scale else noise / sqrt(prod(shape[1:]))
    else:
        values = 0.02 * noise
    return values.astype(np.float32)


def fill(module: ModuleT, prefix: str = "") -> ModuleT:
    """Load the formula's values into all of `module`, whose entries are named `prefix` + their own name."""
    state = {
        name: torch.from_numpy(np.asarray(formula_array(prefix + name, tuple(value.shape))))
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module
