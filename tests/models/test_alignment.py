from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.alignment import Interpolation, align, alignment_operator, interpolation_weights
from models.point_transformer.point_ops import farthest_points
from tests.reference.alignment import plain_patches
from tests.reference.point_ops import wavy_surface

GOLDENS = Path(__file__).parents[1] / "reference" / "goldens"
SIZE = 60
SIDE = 14
GRID = {"image_size": SIZE, "side": SIDE}


@pytest.fixture
def cloud() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on a third of the image's rows, their pixels, and 50 centres."""
    pixel_index = np.arange(SIZE * SIZE // 3) + 700
    points = wavy_surface(SIZE * SIZE)[pixel_index]
    return points, pixel_index, points[farthest_points(points, 50)]


def tokens_of(num_group: int, channels: int = 8) -> torch.Tensor:
    return torch.randn(num_group, channels, generator=torch.Generator().manual_seed(0))


def test_patches_equal_the_full_size_map_in_float64_and_are_nearer_to_it_than_the_float32_map(cloud) -> None:
    points, pixel_index, centers = cloud
    tokens = tokens_of(len(centers))
    exact = plain_patches(points, pixel_index, centers, tokens.double(), **GRID)
    plain = plain_patches(points, pixel_index, centers, tokens, **GRID)
    ours = align(alignment_operator(points, pixel_index, centers, **GRID), tokens).dense()
    error = (ours - exact).abs().max()
    assert error < 1e-5
    assert error < 0.1 * (plain - exact).abs().max()


def test_released_interpolation_equals_the_float32_map(cloud) -> None:
    points, pixel_index, centers = cloud
    tokens = tokens_of(len(centers))
    operator = alignment_operator(points, pixel_index, centers, interpolation="cancelling", **GRID)
    difference = align(operator, tokens).dense() - plain_patches(points, pixel_index, centers, tokens, **GRID)
    tied = 0.05  # share of patches in which the plain sort breaks a tie of distances differently
    assert (difference.abs().amax(1) > 1e-4).float().mean() < tied


def test_patches_without_a_point_share_one_row_of_zeros(cloud) -> None:
    points, pixel_index, centers = cloud
    patches = align(alignment_operator(points, pixel_index, centers, **GRID), tokens_of(len(centers)))
    empty = patches.row_of_patch == len(patches.rows) - 1
    assert 0 < int(empty.sum()) < SIDE * SIDE
    assert (patches.rows[-1] == 0).all()
    assert (patches.rows[:-1] != 0).all()
    assert patches.row_of_patch[~empty].tolist() == list(range(len(patches.rows) - 1))


def test_a_full_image_has_no_row_of_zeros() -> None:
    points = wavy_surface(SIZE * SIZE)
    centers = points[farthest_points(points, 40)]
    patches = align(alignment_operator(points, np.arange(SIZE * SIZE), centers, **GRID), tokens_of(40))
    assert len(patches.rows) == SIDE * SIDE
    assert patches.row_of_patch.tolist() == list(range(SIDE * SIDE))


def test_weights_of_a_full_image_add_up_to_one_a_patch() -> None:
    points = wavy_surface(SIZE * SIZE)
    centers = points[farthest_points(points, 40)]
    operator = alignment_operator(points, np.arange(SIZE * SIZE), centers, **GRID)
    np.testing.assert_allclose(np.add.reduceat(operator.value, operator.crow[:-1]), 1, rtol=1e-6)


@pytest.mark.parametrize("num_group", [1, 2])
@pytest.mark.parametrize("interpolation", ["exact", "cancelling"])
def test_fewer_than_three_centres_are_all_used(num_group: int, interpolation: Interpolation) -> None:
    points = wavy_surface(30)
    weight, center = interpolation_weights(points, points[:num_group], interpolation)
    assert weight.shape == center.shape == (30, num_group)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weight[0, 0], 1, rtol=1e-2)  # the first point is the first centre


def test_interpolation_equals_the_released_one() -> None:
    golden = np.load(GOLDENS / "point_ops.npz", allow_pickle=False)
    weight, center = interpolation_weights(golden["points"], golden["points"][golden["center_index"]])
    interpolated = (golden["features"][:, center] * weight).sum(2)
    np.testing.assert_allclose(interpolated, golden["interpolated"], atol=2e-3)


@pytest.mark.parametrize("interpolation", ["exact", "cancelling"])
def test_patches_equal_the_released_ones(interpolation: Interpolation) -> None:
    golden = np.load(GOLDENS / "alignment.npz", allow_pickle=False)
    points, center_index = golden["points"], farthest_points(golden["points"], 128)
    np.testing.assert_array_equal(center_index, golden["center_index"])
    operator = alignment_operator(
        points,
        golden["pixel_index"],
        points[center_index],
        image_size=224,
        side=56,
        interpolation=interpolation,
    )
    patches = align(operator, torch.from_numpy(golden["features"].T)).dense()[::3]
    np.testing.assert_allclose(patches, golden["patches"], atol=5e-2)  # the release's distances cancel


def test_rows_are_float32_for_bfloat16_tokens(cloud) -> None:
    points, pixel_index, centers = cloud
    tokens = tokens_of(len(centers)).bfloat16()
    operator = alignment_operator(points, pixel_index, centers, **GRID)
    torch.testing.assert_close(align(operator, tokens).rows, align(operator, tokens.float()).rows)


@pytest.mark.cuda
def test_patches_are_the_same_on_the_gpu(cloud) -> None:
    points, pixel_index, centers = cloud
    operator = alignment_operator(points, pixel_index, centers, **GRID)
    tokens = tokens_of(len(centers))
    on_gpu = align(operator, tokens.cuda())
    assert on_gpu.rows.is_cuda
    assert on_gpu.row_of_patch.is_cuda
    torch.testing.assert_close(on_gpu.dense().cpu(), align(operator, tokens).dense())


def test_a_wrong_number_of_tokens_is_refused(cloud) -> None:
    points, pixel_index, centers = cloud
    with pytest.raises(ValueError, match="49 tokens for an operator on 50 groups"):
        align(alignment_operator(points, pixel_index, centers, **GRID), tokens_of(49))


@pytest.mark.parametrize("pixel_index", [[0, 2, 1], [0, 1, 1], [0, 1, SIZE * SIZE], [-1, 0, 1]])
def test_pixels_out_of_order_or_out_of_the_image_are_refused(pixel_index: list[int]) -> None:
    points = wavy_surface(3)
    with pytest.raises(ValueError, match="must ascend strictly within"):
        alignment_operator(points, np.array(pixel_index), points, **GRID)


def test_points_and_pixels_of_different_number_are_refused() -> None:
    points = wavy_surface(3)
    with pytest.raises(ValueError, match="3 points but 2 pixel indices"):
        alignment_operator(points, np.array([0, 1]), points, **GRID)


def test_released_distances_are_those_of_one_product_over_all_pairs() -> None:
    points = wavy_surface(2500)
    centers = points[farthest_points(points, 150)]
    point, center = torch.from_numpy(points), torch.from_numpy(centers)
    squared = -2 * (point @ center.T) + (point**2).sum(1)[:, None] + (center**2).sum(1)
    smallest, index = squared.sort(dim=1)
    weight = 1 / (smallest[:, :3] + 1e-8)
    expected = weight / weight.sum(1, keepdim=True)
    found_weight, found_index = interpolation_weights(points, centers, "cancelling")
    np.testing.assert_array_equal(found_index, index[:, :3])
    np.testing.assert_allclose(found_weight, expected, rtol=1e-6)
