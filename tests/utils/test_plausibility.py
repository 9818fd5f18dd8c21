"""Looking at clouds and images: the unit, raw or preprocessed, an image turned against its cloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from utils.image_files import read_rgb, read_xyz
from utils.plausibility import (
    LEAST_POINTS,
    guess_unit,
    implausible_distance,
    looks_preprocessed,
    looks_raw,
    measured_points,
    misfit_of_unit,
    point_distances,
    silhouette_disagreement,
    too_few_points,
)
from utils.preprocess.sample import Parameters, preprocess_sample

SIDE = 200


def _part(side: int = SIDE) -> np.ndarray:
    """Mask (side, side) of an L: no turn and no mirror image of it fits it."""
    part = np.zeros((side, side), dtype=bool)
    part[side // 4 : -side // 4, side // 3 : side // 2] = True
    part[-side // 2 : -side // 4, side // 3 : -side // 5] = True
    return part


def _cloud(part: np.ndarray, distance: float = 0.6) -> np.ndarray:
    y, x = np.mgrid[: part.shape[0], : part.shape[1]] / max(part.shape) - 0.5
    cloud = np.dstack([0.3 * x + 1e-4, 0.3 * y + 1e-4, np.ones(part.shape)]) * distance
    return (cloud * part[..., None]).astype(np.float32)


def _image(part: np.ndarray, background: int = 0) -> np.ndarray:
    gray = np.random.default_rng(0).integers(90, 160, part.shape) * part + background * ~part
    return np.repeat(gray[..., None], 3, axis=2).astype(np.uint8)


def test_distance_tells_millimetres_from_metres() -> None:
    cloud = _cloud(_part())
    assert guess_unit([cloud, cloud]) == "m"
    assert guess_unit(iter([cloud * 1000])) == "mm"


def test_unit_is_that_of_the_median_point_of_all_clouds() -> None:
    few, many = np.zeros((SIDE, SIDE), dtype=bool), np.ones((SIDE, SIDE), dtype=bool)
    few[0, :3] = True
    assert guess_unit([_cloud(few, 5.0), _cloud(many)]) == "m"


@pytest.mark.parametrize(("scale", "plausible"), [(1e-3, False), (0.02, True), (1, True), (1000, False)])
def test_no_part_lies_at_the_lens_or_far_away(scale: float, plausible: bool) -> None:
    assert (implausible_distance(_cloud(_part()) * np.float32(scale)) is None) == plausible


def test_a_cloud_without_a_point_has_no_implausible_distance() -> None:
    assert implausible_distance(np.zeros((4, 4, 3), np.float32)) is None


def test_points_that_enlarging_has_doubled_do_not_count() -> None:
    few = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) < LEAST_POINTS
    assert too_few_points(_cloud(few), LEAST_POINTS) is None
    assert too_few_points(_cloud(few), LEAST_POINTS - 1) == "shows 127 points of the part, 128 are the least"
    few[0, 0] = False
    assert too_few_points(_cloud(few), 10 * LEAST_POINTS) is not None


def test_clouds_of_both_units_are_an_error() -> None:
    cloud = _cloud(_part())
    with pytest.raises(ValueError, match=r"metres and in millimetres.*--unit m or --unit mm"):
        guess_unit([cloud, cloud * 1000, cloud])


def test_points_that_are_not_measured_say_nothing_of_the_unit() -> None:
    cloud = _cloud(_part())
    cloud[0, :, :] = np.nan
    cloud[1, :, 2], cloud[2, :] = 5e5, np.inf
    assert guess_unit([cloud]) == "m"
    with pytest.raises(ValueError, match="no point is measured"):
        guess_unit([np.zeros((4, 4, 3), dtype=np.float32)])
    with pytest.raises(ValueError, match="no point is measured"):
        guess_unit([])


@pytest.mark.parametrize("distance", [3.5, 9.0])
def test_ambiguous_distance_is_an_error_that_names_the_flag(distance: float) -> None:
    with pytest.raises(ValueError, match=r"--unit m or --unit mm"):
        guess_unit([_cloud(_part(), distance)])


def test_background_at_the_border_looks_raw() -> None:
    raw, alone = _cloud(np.ones((SIDE, SIDE), dtype=bool)), _cloud(_part())
    assert "background at its border" in (looks_raw(raw) or "")
    assert not looks_preprocessed(raw)
    assert looks_raw(alone) is None
    assert looks_preprocessed(alone)


def test_cloud_that_is_not_square_looks_raw() -> None:
    wide = _cloud(np.ones((SIDE, SIDE + 60), dtype=bool))
    assert "260x200 pixels and is not square" in (looks_raw(wide) or "")
    assert not looks_preprocessed(wide)


def test_part_that_leaves_the_image_at_two_ends_does_not_look_raw() -> None:
    rope = np.zeros((SIDE, SIDE), dtype=bool)
    rope[90:110] = True
    assert looks_raw(_cloud(rope)) is None
    assert looks_preprocessed(_cloud(rope))


def test_cloud_without_a_point_looks_neither_raw_nor_preprocessed() -> None:
    empty = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
    assert looks_raw(empty) is None
    assert not looks_preprocessed(empty)


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda image: image[:, ::-1],
    "mirrored top to bottom": lambda image: image[::-1],
    "rotated by 180 degrees": lambda image: image[::-1, ::-1],
    "rotated by 90 degrees": np.rot90,
    "mirrored at its diagonal": lambda image: image.transpose(1, 0, 2),
    "shifted by about 10 pixels right": lambda image: np.roll(image, 10, axis=1),
    "shifted by about 20 pixels up": lambda image: np.roll(image, -20, axis=0),
}


@pytest.mark.parametrize("background", [0, 30, 200])
@pytest.mark.parametrize("words", TURNS)
def test_image_turned_or_shifted_against_its_cloud_is_remarked_on(words: str, background: int) -> None:
    cloud, image = _cloud(_part()), _image(_part(), background)
    assert silhouette_disagreement(image, cloud) is None
    said = silhouette_disagreement(np.ascontiguousarray(TURNS[words](image)), cloud) or ""
    assert words.split(" by about")[0] in said
    if "about" in words:
        assert words.split()[-1] in said


def test_nothing_is_said_where_it_can_not_be_told() -> None:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    disc = np.hypot(x, y) < 60
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pairs = {
        "round part, mirrored": (_image(disc)[:, ::-1], _cloud(disc)),
        "image that does not show the part": (noise, _cloud(_part())),
        "image of one colour": (np.full((SIDE, SIDE, 3), 70, np.uint8), _cloud(_part())),
        "raw cloud": (_image(_part())[:, ::-1], _cloud(np.ones((SIDE, SIDE), dtype=bool))),
        "other size": (_image(_part(100)), _cloud(_part())),
        "one point": (_image(_part())[:, ::-1], _cloud(np.eye(1, SIDE * SIDE, 9000).reshape(SIDE, SIDE) > 0)),
        "no point": (_image(_part()), np.zeros((SIDE, SIDE, 3), np.float32)),
    }
    for name, (image, cloud) in pairs.items():
        assert silhouette_disagreement(np.ascontiguousarray(image), cloud) is None, name


def test_dark_part_on_its_erased_background_is_no_reason_for_a_remark() -> None:
    part = _part()
    image = _image(part)
    image[part & (np.random.default_rng(1).random(part.shape) < 0.3)] = 0
    assert silhouette_disagreement(image, _cloud(part)) is None


@pytest.mark.parametrize(
    ("distance", "misfits"),
    [(0.1, {"mm"}), (2.9, {"mm"}), (3.1, set()), (9.9, set()), (10.1, {"m"}), (600, {"m"}), (0, set())],
)
def test_a_cloud_is_in_the_other_unit_only_where_no_part_can_lie(distance: float, misfits: set[str]) -> None:
    cloud = _cloud(np.ones((40, 40), dtype=bool))
    cloud *= distance / np.median(point_distances(cloud))
    assert {unit for unit in ("m", "mm") if misfit_of_unit(cloud, unit)} == misfits


@pytest.mark.parametrize("side", [1, 2, 7, 20, 39])
def test_small_images_are_no_trouble(side: int) -> None:
    cloud = _cloud(np.ones((side, side), dtype=bool))
    cloud[0] = cloud[-1] = cloud[:, 0] = cloud[:, -1] = 0
    looks_raw(cloud)
    assert looks_preprocessed(cloud) == bool(measured_points(cloud).any())
    assert silhouette_disagreement(_image(np.ones((side, side), dtype=bool)), cloud) is None


@pytest.mark.real_data
def test_real_samples_are_told_apart_and_only_turned_images_are_remarked_on(real_data: Path) -> None:
    for xyz in sorted((real_data / "mvtec3d" / "cable_gland" / "test").glob("*/xyz/000.tiff")):
        cloud, rgb = read_xyz(xyz), read_rgb(xyz.parents[1] / "rgb" / "000.png")
        assert guess_unit([cloud]) == "m"
        assert looks_raw(cloud)
        assert not looks_preprocessed(cloud)
        assert silhouette_disagreement(rgb, cloud) is None
        cloud, rgb, _ = preprocess_sample(cloud, rgb, Parameters(), np.random.default_rng(0))
        assert looks_raw(cloud) is None
        assert looks_preprocessed(cloud)
        assert silhouette_disagreement(rgb, cloud) is None
        for words in ("mirrored left to right", "mirrored top to bottom", "rotated by 180 degrees"):
            assert words in (silhouette_disagreement(TURNS[words](rgb), cloud) or "")
        assert "pixels down" in (silhouette_disagreement(np.roll(rgb, 40, axis=0), cloud) or "")
