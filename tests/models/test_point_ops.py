from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.point_transformer.point_ops import farthest_points, group_points
from tests.reference.point_ops import plain_farthest_points, plain_neighbors, wavy_surface

GOLDENS = Path(__file__).parents[1] / "reference" / "goldens"
GOLDEN = np.load(GOLDENS / "point_ops.npz", allow_pickle=False)


def lattice(num_points: int, levels: int, seed: int) -> np.ndarray:
    """Points that repeat and whose distances tie."""
    random = np.random.RandomState(seed)
    return (random.randint(levels, size=(num_points, 3)) * 0.05).astype(np.float32)


@pytest.mark.parametrize(("num_points", "n"), [(1, 1), (50, 50), (3000, 300), (20000, 1024)])
def test_farthest_points_equal_the_plain_loop_on_a_surface(num_points: int, n: int) -> None:
    points = wavy_surface(num_points)
    np.testing.assert_array_equal(farthest_points(points, n), plain_farthest_points(points, n))


@pytest.mark.parametrize("seed", range(12))
def test_farthest_points_take_the_lowest_index_among_ties(seed: int) -> None:
    points = lattice(150 + 20 * seed, levels=2 + seed % 6, seed=seed)
    np.testing.assert_array_equal(farthest_points(points, 120), plain_farthest_points(points, 120))


@pytest.mark.parametrize("flat_axes", [[0], [1, 2], [0, 1, 2]])
def test_farthest_points_handle_planes_lines_and_a_single_place(flat_axes: list[int]) -> None:
    points = wavy_surface(900)
    points[:, flat_axes] = 0.4
    np.testing.assert_array_equal(farthest_points(points, 64), plain_farthest_points(points, 64))


def test_farthest_points_handle_a_far_outlier() -> None:
    points = wavy_surface(2000)
    points[777] = (40.0, -35.0, 90.0)
    sampled = farthest_points(points, 100)
    assert sampled[1] == 777
    np.testing.assert_array_equal(sampled, plain_farthest_points(points, 100))


def test_points_near_the_origin_are_never_chosen_after_the_start() -> None:
    points = wavy_surface(400)
    points[:100] *= 0.05  # norm below 0.032 m
    sampled = farthest_points(points, 200)
    assert sampled[0] == 0
    assert sampled[1:].min() >= 100
    np.testing.assert_array_equal(sampled, plain_farthest_points(points, 200))


def test_index_zero_repeats_where_all_points_are_near_the_origin() -> None:
    np.testing.assert_array_equal(farthest_points(wavy_surface(40) * 0.01, 7), np.zeros(7))


def test_farthest_points_equal_the_released_kernel() -> None:
    np.testing.assert_array_equal(farthest_points(GOLDEN["points"], 64), GOLDEN["center_index"])


@pytest.mark.parametrize("n", [0, 11])
def test_sampling_more_points_than_there_are_or_none_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {n} of 10 points"):
        farthest_points(wavy_surface(10), n)


def test_sampling_refuses_coordinates_that_are_not_finite() -> None:
    points = wavy_surface(10)
    points[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        farthest_points(points, 2)


def test_groups_hold_the_nearest_points_in_ascending_order() -> None:
    points = wavy_surface(5000)
    found = group_points(points, num_group=200, group_size=64)
    assert found.groups.dtype == np.float32
    np.testing.assert_array_equal(found.centers, points[farthest_points(points, 200)])
    expected = points[plain_neighbors(points, found.centers, 64)] - found.centers[:, None]
    np.testing.assert_array_equal(sorted_rows(found.groups), sorted_rows(expected))
    distance = np.linalg.norm(found.groups.astype(np.float64), axis=2)
    assert (np.diff(distance, axis=1) >= -1e-9).all()
    assert (distance[:, 0] == 0).all()


def test_groups_equal_the_released_ones() -> None:
    found = group_points(GOLDEN["points"], num_group=64, group_size=32)
    np.testing.assert_array_equal(found.centers, GOLDEN["centers"])
    np.testing.assert_array_equal(sorted_rows(found.groups), sorted_rows(GOLDEN["groups"]))


def test_a_small_cloud_gives_as_many_and_as_large_groups_as_it_has_points() -> None:
    found = group_points(wavy_surface(10), num_group=1024, group_size=128)
    assert found.groups.shape == (10, 10, 3)
    np.testing.assert_array_equal(sorted_rows(found.centers[None]), sorted_rows(wavy_surface(10)[None]))
    assert group_points(wavy_surface(1), num_group=4, group_size=4).groups.shape == (1, 1, 3)


def test_an_empty_cloud_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        group_points(np.empty((0, 3), dtype=np.float32), num_group=4, group_size=4)


def sorted_rows(groups: np.ndarray) -> np.ndarray:
    """Each group's points in lexicographic order, so that groups compare as sets."""
    order = np.lexsort(groups.transpose(2, 0, 1), axis=1)
    return np.take_along_axis(groups, order[..., None], axis=1)
