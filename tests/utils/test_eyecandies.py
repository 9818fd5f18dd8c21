"""Eyecandies' geometry: points and crop against a plain twin, and on the real samples."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.eyecandies_scene import SIDE, TOP_Y, camera_pose, scene
from tests.reference.eyecandies import plain_object_cloud
from utils.image_files import SampleFileError
from utils.preprocess.eyecandies import (
    intrinsics,
    object_cloud,
    object_pixels,
    read_depth,
    read_pose,
    unproject,
)


@pytest.mark.parametrize("tilt", [45.0, 50.0])
def test_points_project_back_to_their_pixels(tilt: float) -> None:
    pose = camera_pose(tilt)
    points = unproject(scene(pose)[0], pose)
    assert reprojection_error(points, pose) < 1e-9


def reprojection_error(points: np.ndarray, pose: np.ndarray) -> float:
    """Largest distance in pixels between a point's projection and the pixel that it belongs to."""
    height, width = points.shape[:2]
    homogeneous = np.concatenate([points, np.ones((height, width, 1))], axis=2)
    projected = np.einsum("ij,hwj->hwi", intrinsics(height, width) @ pose, homogeneous)
    rows, columns = np.mgrid[:height, :width]
    pixels = projected[..., :2] / projected[..., 2:3]
    return float(np.linalg.norm(pixels - np.stack([columns, rows], axis=2), axis=2).max())


@pytest.mark.parametrize("tilt", [45.0, 50.0])
def test_cloud_equals_the_per_pixel_loops(tilt: float) -> None:
    pose = camera_pose(tilt)
    depth, disc = scene(pose)
    ours, plain = object_cloud(depth, pose), plain_object_cloud(depth, pose)
    np.testing.assert_array_equal(ours.any(axis=2), plain.any(axis=2))
    np.testing.assert_array_equal(ours.any(axis=2), disc)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-9)
    assert ours.dtype == np.float32


def test_ground_that_is_not_horizontal_is_removed_all_the_same() -> None:
    depth, disc = scene(camera_pose(45.0))
    turned = camera_pose(45.0) @ np.array(  # the same view of a world that is turned about x by 10 degrees
        [[1, 0, 0, 0], [0, np.cos(0.17), -np.sin(0.17), 0], [0, np.sin(0.17), np.cos(0.17), 0], [0, 0, 0, 1]]
    )
    np.testing.assert_array_equal(object_pixels(unproject(depth, turned)), disc)


def test_kept_points_have_no_zero_coordinate_and_the_others_nothing_else() -> None:
    depth, disc = scene(camera_pose())
    cloud = object_cloud(depth, camera_pose())
    assert disc[36, SIDE // 2]  # where x is 0: the column of the principal point
    assert (cloud[disc] != 0).all()
    assert (cloud[~disc] == 0).all()


def test_axes_are_turned_and_scaled_to_metres() -> None:
    depth, disc = scene(camera_pose())
    world, cloud = unproject(depth, camera_pose())[disc], object_cloud(depth, camera_pose())[disc]
    np.testing.assert_allclose(
        cloud, np.stack([0.1 * world[:, 0], -0.1 * world[:, 2], 0.1 * world[:, 1]], 1), atol=1e-7
    )
    np.testing.assert_allclose(cloud[:, 2], 0.1 * TOP_Y, atol=1e-6)


def test_singular_pose_is_refused(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "00_pose.txt", np.zeros((4, 4)))
    with pytest.raises(SampleFileError, match="invertible"):
        read_pose(tmp_path / "00_pose.txt")


@pytest.mark.real_data
@pytest.mark.skipif("M3DM_REAL_DATA" not in os.environ, reason="M3DM_REAL_DATA is not set")
def test_real_samples_reproject_and_keep_the_candy_with_its_defects() -> None:
    root = Path(os.environ["M3DM_REAL_DATA"]) / "eyecandies/CandyCane"
    for depth_path in sorted(root.glob("*/data/*_depth.png")):
        stem = str(depth_path).removesuffix("depth.png")
        depth, pose = (
            read_depth(depth_path, Path(f"{stem}info_depth.yaml")),
            read_pose(Path(f"{stem}pose.txt")),
        )
        points = unproject(depth, pose)
        assert reprojection_error(points, pose) < 0.01
        kept, defect = object_pixels(points), np.asarray(Image.open(f"{stem}mask.png")) > 0
        assert 0.04 < kept.mean() < 0.07  # a candy cane
        assert (
            not defect.any() or kept[defect].mean() > 0.9
        )  # the masks reach over the outline onto the ground
