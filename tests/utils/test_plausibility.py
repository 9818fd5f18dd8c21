"""What clouds tell of their unit, and of whether they were preprocessed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.preprocessing import make_scene
from utils.plausibility import guess_unit, looks_preprocessed
from utils.preprocess.sample import Parameters, preprocess_sample


def _cloud(distance: float, missing: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    cloud = np.zeros((50, 50, 3), dtype=np.float32) + np.float32(1e-3)
    cloud[..., 2] = distance * rng.uniform(0.9, 1.1, (50, 50))
    cloud[rng.random((50, 50)) < missing] = 0
    return cloud


@pytest.mark.parametrize(("distance", "unit"), [(0.2, "m"), (2.5, "m"), (12.0, "mm"), (600.0, "mm")])
def test_unit_is_told_by_the_median_distance_of_measured_points(distance: float, unit: str) -> None:
    clouds = [_cloud(distance), _cloud(distance, missing=0.9), np.zeros((5, 5, 3), np.float32)]
    clouds[0][:5] = np.nan
    clouds[0][5] = 1e6
    assert guess_unit(clouds) == unit


@pytest.mark.parametrize("distances", [[5.0], [0.6, 600.0], [0.6, 5.0], [5.0, 600.0]])
def test_a_distance_between_or_clouds_that_disagree_are_an_error_that_names_the_flag(
    distances: list[float],
) -> None:
    with pytest.raises(ValueError, match="--unit m or --unit mm"):
        guess_unit(map(_cloud, distances))


@pytest.mark.parametrize("clouds", [[], [np.zeros((5, 5, 3))], [np.full((5, 5, 3), np.nan)]])
def test_no_point_tells_no_unit(clouds: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"no point.*--unit"):
        guess_unit(clouds)


@pytest.mark.parametrize("shape", [(100, 100), (95, 160)])
def test_a_scene_looks_preprocessed_after_preprocessing_only(shape: tuple[int, int]) -> None:
    cloud, image, _ = make_scene(*shape, np.random.default_rng(0))
    assert not looks_preprocessed(cloud)
    after, _, _ = preprocess_sample(cloud, image, Parameters(), np.random.default_rng(0))
    assert looks_preprocessed(after)


def test_an_image_that_is_not_square_was_not_preprocessed() -> None:
    assert looks_preprocessed(np.zeros((60, 60, 3)))
    assert not looks_preprocessed(np.zeros((60, 61, 3)))
