"""What clouds tell of themselves: the unit they are in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

Unit = Literal["m", "mm"]

FARTHEST_IN_METRES = 3.0  # median distance from the sensor; no part is inspected from farther away
NEAREST_IN_MILLIMETRES = 10.0


def guess_unit(clouds: Iterable[np.ndarray]) -> Unit:
    """Unit of clouds (..., 3) by the median distance of each one's measured points from the origin.

    Raises ValueError when a distance fits neither unit, the clouds disagree, or none has a point.
    """
    distances = [distance for cloud in clouds if (distance := _median_distance(cloud)) is not None]
    if not distances:
        raise ValueError("no point to tell the unit from; name it with --unit m or --unit mm")
    if max(distances) < FARTHEST_IN_METRES:
        return "m"
    if min(distances) > NEAREST_IN_MILLIMETRES:
        return "mm"
    raise ValueError(
        f"the points lie {min(distances):.3g} to {max(distances):.3g} from the origin (medians), which tells neither "
        "metres nor millimetres for all clouds; name the unit with --unit m or --unit mm"
    )


def _measured(cloud: np.ndarray) -> np.ndarray:
    """Which points (..., 3) exist: finite, and no coordinate is 0."""
    return (np.isfinite(cloud) & (cloud != 0)).all(axis=-1)


def _median_distance(cloud: np.ndarray) -> float | None:
    points = cloud[_measured(cloud)].astype(np.float64)
    return float(np.median(np.linalg.norm(points, axis=1))) if len(points) else None
