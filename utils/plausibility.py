"""Looking at clouds and images for what silently spoils a run: the wrong unit, raw data, a mirrored image.

A point is measured where its three coordinates are non-zero and finite. Everything here judges arrays as they are
stored, organised clouds (H, W, 3) and images (H, W, 3) uint8; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

Unit = Literal["m", "mm"]

# Median distance of the points from the sensor, in the cloud's own unit: MVTec 3D-AD has 0.66 m, Eyecandies 0.23 m.
MILLIMETRES_FROM = 10.0  # above it millimetres: no sensor of parts stands 10 m away
METRES_TO = 3.0  # below it metres: no sensor measures at 3 mm
MILLIMETRES_A_METRE = 1000.0

LEAST_POINTS = 128  # of a part that is judged: one group of Point-MAE

BORDER_PIXELS = 10  # width of the border strips in which preprocessing looks for the background plane
BORDER_SHARE_OF_SIDE = 20  # strips take at most 1/20 of a side: in small images 10 pixels reach the part
EMPTY_BORDER = (
    0.1  # share of the border that a long part may touch; raw samples of MVTec 3D-AD have 0.48 and more
)
BACKGROUND_STRIP = 0.1  # share of one strip that says it shows background
BACKGROUND_STRIPS = 3  # of the four: a long part may leave the image at two ends

CELLS = 128  # a side for silhouettes: averages out the speckle of single pixels, a cell is 0.8 % of the side
PART_SHARE = (0.005, 0.9)  # least and most of the image, or there is no silhouette to compare
VISIBLE = 0.6  # least correlation at which an image shows its part; real samples have 0.81 to 0.95
AGREES = 0.95  # share of the best correlation that is as good: a shift by 5 % of the side costs more than 7 %
SAME_PLACE = 0.02  # shifts up to this share of the side are none
NEXT_PLACE = 0.03  # shifts are looked for from here on
FARTHEST_SHIFT = 0.3  # to here
ERASED_AROUND = 0.1  # margin, in sides, of the box around the part in which black is looked for
ERASED_SHARE = 0.1  # black share of that box's background from which the black is preprocessing's
ERASED_PART = 0.002  # share of the part that may be black by its own colour in such an image

DIHEDRAL = (  # mirrored first?, then quarter turns: what makes the stored image fit, and what must have happened
    (False, 1, "rotated by 90 degrees"),
    (False, 2, "rotated by 180 degrees"),
    (False, 3, "rotated by 90 degrees"),
    (True, 0, "mirrored left to right"),
    (True, 1, "mirrored at its diagonal"),
    (True, 2, "mirrored top to bottom"),
    (True, 3, "mirrored at its diagonal"),
)


def measured_points(cloud: np.ndarray) -> np.ndarray:
    """Which pixels of a cloud (H, W, 3) hold a measured point, (H, W) bool."""
    return (np.isfinite(cloud) & (cloud != 0)).all(axis=2)


def point_distances(cloud: np.ndarray) -> np.ndarray:
    """Distances (N,) float64 of the measured points from the origin, in the cloud's unit."""
    return np.linalg.norm(cloud[measured_points(cloud)].astype(np.float64), axis=1)


def _median_distance(cloud: np.ndarray) -> float | None:
    """Of the measured points, in the cloud's unit; None where there is none."""
    distances = point_distances(cloud)
    return float(np.median(distances)) if len(distances) else None


def guess_unit(clouds: Iterable[np.ndarray]) -> Unit:
    """The unit of the clouds, by the median distance of all their measured points from the sensor.

    Raises ValueError when no point is measured, when the distance fits both units, and when a cloud by itself is
    clearly in the other one.
    """
    distances = [distance for cloud in clouds if len(distance := point_distances(cloud))]
    if not distances:
        raise ValueError("the unit can't be told, no point is measured: say it with --unit m or --unit mm")
    unit = unit_of_distance(float(np.median(np.concatenate(distances))))
    medians = [float(np.median(distance)) for distance in distances]
    if max(medians) > MILLIMETRES_FROM and min(medians) < METRES_TO:
        raise ValueError(
            f"clouds in metres and in millimetres, with median distances of {min(medians):.3g} to {max(medians):.3g}: "
            "convert some of them, or say the unit of all with --unit m or --unit mm"
        )
    return unit


def unit_of_distance(distance: float) -> Unit:
    """The unit in which parts lie that far from a sensor. Raises ValueError when both are possible."""
    if distance > MILLIMETRES_FROM:
        return "mm"
    if distance < METRES_TO:
        return "m"
    raise ValueError(
        f"the unit can't be told from a median distance of {distance:.3g}: say it with --unit m or --unit mm"
    )


def implausible_distance(cloud: np.ndarray) -> str | None:
    """Why the points of a cloud (H, W, 3) can't be in metres, whatever was said of their unit, or None."""
    median = _median_distance(cloud)
    if median is None or METRES_TO / MILLIMETRES_A_METRE < median <= MILLIMETRES_FROM:
        return None
    return f"has its points {median:.3g} m from the sensor, where no part lies"


def too_few_points(cloud: np.ndarray, seen: int) -> str | None:
    """Why a cloud (H, W, 3) of which a model sees `seen` points shows too little of a part for a verdict, or None.

    A small cloud that is enlarged for the model has more points then, but shows no more of the part.
    """
    count = min(int(np.count_nonzero(measured_points(cloud))), seen)
    return f"shows {count} points of the part, {LEAST_POINTS} are the least" if count < LEAST_POINTS else None


def misfit_of_unit(cloud: np.ndarray, unit: Unit) -> str | None:
    """Why a cloud (H, W, 3) is clearly not in a unit, or None, also where both are possible or no point is measured."""
    median = _median_distance(cloud)
    if median is None or not (median > MILLIMETRES_FROM if unit == "m" else median < METRES_TO):
        return None
    return (
        f"has a median distance of {median:.3g}, which is not in {'metres' if unit == 'm' else 'millimetres'}"
    )


def looks_preprocessed(cloud: np.ndarray) -> bool:
    """Whether a cloud (H, W, 3) is square, with measured points, but nearly none at its border."""
    height, width = cloud.shape[:2]
    measured = measured_points(cloud)
    if height != width or not measured.any():
        return False
    strip = _strip_width(height)
    inner = np.count_nonzero(measured[strip:-strip, strip:-strip])
    border_pixels = measured.size - (height - 2 * strip) ** 2
    return bool(np.count_nonzero(measured) - inner <= EMPTY_BORDER * border_pixels)


def looks_raw(cloud: np.ndarray) -> str | None:
    """Why a cloud (H, W, 3) looks as if it had not been preprocessed, or None."""
    height, width = cloud.shape[:2]
    if height != width:
        return f"it has {width}x{height} pixels and is not square"
    measured = measured_points(cloud)
    shares = [float(strip.mean()) for strip in _border_strips(measured)]
    if sum(share > BACKGROUND_STRIP for share in shares) < BACKGROUND_STRIPS:
        return None
    return f"it shows background at its border, {np.mean(shares):.0%} of which is measured"


def silhouette_disagreement(rgb: np.ndarray, cloud: np.ndarray) -> str | None:
    """How an image (S, S, 3) uint8 seems to be turned or shifted against its preprocessed cloud (S, S, 3), in words.

    None when they agree, and when it can't be told: background in the cloud, a part that the image hardly shows,
    a part that looks the same mirrored. The part's mask is correlated with the colours and with what
    preprocessing erased, at the stored position and at all others.
    """
    if rgb.shape != cloud.shape or not looks_preprocessed(cloud):
        return None
    part = measured_points(cloud)
    if not PART_SHARE[0] <= part.mean() <= PART_SHARE[1] or _erased_beside(rgb, part):
        return None
    stored, others = _placements(rgb, part)
    best = max(others, key=lambda placement: placement.correlation)
    if best.correlation < VISIBLE or stored > AGREES * best.correlation:
        return None
    return f"the image seems {best.words} against its cloud"


class _Placement(NamedTuple):
    """What would have happened to the image, and how well the part's mask then fits it."""

    correlation: float
    words: str


def _strip_width(side: int) -> int:
    return max(1, min(BORDER_PIXELS, side // BORDER_SHARE_OF_SIDE))


def _border_strips(measured: np.ndarray) -> list[np.ndarray]:
    strip = _strip_width(min(measured.shape))
    return [measured[:strip], measured[-strip:], measured[:, :strip], measured[:, -strip:]]


def _erased_beside(rgb: np.ndarray, part: np.ndarray) -> bool:
    """Whether the image has preprocessing's black around the part and none on it: then they agree for certain."""
    margin = int(ERASED_AROUND * len(part))
    box = tuple(slice(max(0, along.min() - margin), along.max() + margin + 1) for along in np.nonzero(part))
    black = np.equal(rgb, 0).all(axis=2)
    erased = np.count_nonzero(black[box] & ~part[box]) >= ERASED_SHARE * np.count_nonzero(~part[box])
    return bool(erased and np.count_nonzero(black & part) <= ERASED_PART * np.count_nonzero(part))


def _placements(rgb: np.ndarray, part: np.ndarray) -> tuple[float, list[_Placement]]:
    """Correlation of mask and image as they are stored, and of all other placements."""
    side = len(part)
    features = _block_means(np.dstack([rgb, ~rgb.any(axis=2)]))  # (C, C, 4)
    mask = _block_means(part[..., None])  # (C, C, 1)
    maps = _correlations(features, mask)
    cells = len(maps)
    offset = (
        np.arange(cells) + cells // 2
    ) % cells - cells // 2  # of each shift, negative ones wrapped around
    distance = np.maximum(abs(offset[:, None]), abs(offset[None, :])) / cells  # (C, C), shares of the side
    here = distance <= SAME_PLACE
    away = (distance >= NEXT_PLACE) & (distance <= FARTHEST_SHIFT)
    row, column = np.unravel_index(np.argmax(np.where(away, maps, 0)), maps.shape)
    words = _shift_words(offset[row] * side / cells, offset[column] * side / cells)
    others = [_Placement(float(maps[row, column]), words)]
    for mirrored, turns, words in DIHEDRAL:
        turned = np.rot90(features[:, ::-1] if mirrored else features, turns)
        others.append(_Placement(float(_correlations(turned, mask)[here].max()), words))
    return float(maps[here].max()), others


def _block_means(pixels: np.ndarray) -> np.ndarray:
    """(S, S, F) -> (C, C, F) float64, C = the smaller of S and CELLS."""
    side = len(pixels)
    cells = min(side, CELLS)
    starts = np.arange(cells) * side // cells
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), starts, axis=0), starts, axis=1)
    counts = np.diff([*starts, side])
    return sums / (counts[:, None] * counts)[..., None]


def _correlations(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Largest absolute correlation over features (C, C, F) with mask (C, C, 1) at each cyclic shift, (C, C).

    Entry [y, x] is that of the image's content lying y rows below and x columns right of the mask.
    """
    features, mask = _standardised(features), _standardised(mask)
    spectrum = np.fft.rfft2(features, axes=(0, 1)) * np.conj(np.fft.rfft2(mask, axes=(0, 1)))
    return abs(np.fft.irfft2(spectrum, s=mask.shape[:2], axes=(0, 1))).max(axis=2)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and norm 1 over (C, C, F)'s pixels; a constant feature becomes 0."""
    centred = values - values.mean(axis=(0, 1))
    norm = np.sqrt((centred**2).sum(axis=(0, 1)))
    return centred / np.where(norm > 1e-9, norm, np.inf)


def _shift_words(down: float, right: float) -> str:
    parts = [
        f"{abs(pixels):.0f} pixels {before if pixels < 0 else after}"
        for pixels, before, after in ((right, "left", "right"), (down, "up", "down"))
        if round(pixels)
    ]
    return f"shifted by about {' and '.join(parts)}"
