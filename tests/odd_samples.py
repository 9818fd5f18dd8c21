"""Hypothesis strategies for clouds and images as cameras, converters and broken cables make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from dataset import load_sample
from utils.structures import Sample

COUNTS = (0, 1, 2, 127, 128, 1023, 1024, 1025)  # points: around the defaults of --group_size and --num_group
SIDE = 40  # pixels of a cloud that holds them
NEVER_MEASURED = (np.nan, np.inf, -np.inf)
LARGEST = (2000, 1500)


def _scattered(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform((-0.05, -0.05, 0.45), (0.05, 0.05, 0.55), (count, 3))


def _equal(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(_scattered(1, rng), count, axis=0)


def _line(count: int, rng: np.random.Generator) -> np.ndarray:
    start, end = _scattered(2, rng)
    return start + np.linspace(0, 1, count)[:, None] * (end - start)


def _plane(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.column_stack([_scattered(count, rng)[:, :2], np.full(count, 0.5)])


def _duplicates(count: int, rng: np.random.Generator) -> np.ndarray:
    return _scattered(max(1, count // 3), rng)[rng.integers(max(1, count // 3), size=count)]


SHAPES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "scattered": _scattered,
    "equal": _equal,
    "line": _line,
    "plane": _plane,
    "duplicates": _duplicates,
}


class Cloud(NamedTuple):
    """What was drawn, for the printed example, and the cloud (SIDE, SIDE, 3) float32 in metres, or millimetres."""

    shape: str
    count: int
    seed: int
    ruined: float
    scale: float

    @property
    def points(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        cloud = np.zeros((SIDE * SIDE, 3), np.float32)
        pixels = rng.permutation(SIDE * SIDE)
        cloud[pixels[: self.count]] = SHAPES[self.shape](self.count, rng) * self.scale
        ruined = pixels[: int(self.ruined * SIDE * SIDE)]
        cloud[ruined, rng.integers(3, size=len(ruined))] = rng.choice(NEVER_MEASURED, len(ruined))
        return cloud.reshape(SIDE, SIDE, 3)

    @property
    def image(self) -> np.ndarray:
        """A photograph of the same side, (SIDE, SIDE, 3) uint8."""
        return np.random.default_rng(self.seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def loaded(cloud: Cloud, image_size: int) -> Sample | None:
    """The sample; None where it is refused, as one in millimetres must be unless hardly a point is left."""
    try:
        return load_sample(cloud.image, cloud.points, image_size)
    except ValueError as error:
        assert "not in metres" in str(error)  # noqa: PT017
        assert cloud.scale == 1000
        return None


def clouds() -> st.SearchStrategy[Cloud]:
    """Clouds of COUNTS points of all SHAPES; some pixels NaN or infinite; some in millimetres."""
    return st.builds(
        Cloud,
        shape=st.sampled_from(sorted(SHAPES)),
        count=st.sampled_from(COUNTS),
        seed=st.integers(0, 2**16),
        ruined=st.sampled_from((0.0, 0.0, 0.1, 1.0)),
        scale=st.sampled_from((1.0, 1.0, 1000.0)),
    )


def sizes() -> st.SearchStrategy[tuple[int, int]]:
    """Width and height of images, from one pixel on."""
    side = st.one_of(st.integers(1, 4), st.integers(5, 90))
    return st.tuples(side, side)
