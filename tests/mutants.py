"""Damaged versions of a file, to see what its reader makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LARGEST_CHANGE = 64  # bytes


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` versions in which a few bytes were flipped, overwritten, removed, inserted or cut off."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            start, length = int(rng.integers(len(content))), int(rng.integers(1, LARGEST_CHANGE))
            kind = rng.integers(5)
            if kind == 0 and start < len(damaged):
                damaged[start] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                damaged[start : start + length] = rng.bytes(length)
            elif kind == 2:
                del damaged[start : start + length]
            elif kind == 3:
                damaged[start:start] = rng.bytes(length)
            elif rng.random() < 0.2:
                del damaged[start:]
        yield bytes(damaged)
