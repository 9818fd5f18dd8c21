"""The two parts of the demo data set, how they vary from sample to sample, and their defects."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from utils.demo.scene import COLUMNS, PITCH_M, ROWS, Relief, facing_camera, grid

BAGEL_RING_M, BAGEL_TUBE_M = 0.0235, 0.0115  # radius of the ring's center line, and of its tube
BAGEL_HEIGHT = 1.7  # in tube radii: it lies flat
BAGEL_SEEDS, SEED_RADIUS_M, SEED_TILT = 90, 0.0014, 0.5  # tilt in radians
CRUST, CRUMB, SEED = np.array([[0.66, 0.38, 0.15], [0.90, 0.68, 0.38], [0.97, 0.91, 0.74]])[..., None, None]

ROPE_LENGTH_M, ROPE_RADIUS_M = 0.115, 0.0125
ROPE_HEIGHT = 1.6  # in radii
ROPE_STRANDS, ROPE_TWIST_PER_M, ROPE_GROOVE_M = 3, 200.0, 0.0016
FIBER, MARKER = np.array([[0.80, 0.74, 0.58], [0.22, 0.36, 0.62]])[..., None, None]

DEBRIS_SHARE, DEBRIS_RADIUS_M = 0.3, 0.0045  # a crumb beside the part, for preprocessing to remove
DEBRIS_OFFSET_M = (0.037, 0.042)  # from the middle, to either side
SPOT_RADIUS_M = (0.0045, 0.006)
SPOT_HEIGHT_M, SPOT_COSINE = 0.012, 0.8  # defects are on top, turned to the camera
STAIN = np.array([0.10, 0.05, 0.09])[:, None, None]


def bagel(rng: np.random.Generator) -> Relief:
    """A ring of uneven thickness with seeds on its crust, near the middle."""
    (x, y), shift = grid(), rng.uniform(-0.003, 0.003, 2)
    angle, off_axis = np.arctan2(y - shift[1], x - shift[0]), np.hypot(x - shift[0], y - shift[1])
    ring, tube = BAGEL_RING_M + rng.normal(0, 5e-4), BAGEL_TUBE_M + rng.normal(0, 3e-4)
    swell, phase = rng.uniform(0, 0.04, 2), rng.uniform(0, 2 * np.pi, 2)
    uneven = swell[0] * np.cos(angle + phase[0]) + swell[1] * np.cos(3 * angle + phase[1])
    height = _round_top(off_axis - ring, tube * (1 + uneven), BAGEL_HEIGHT * tube)
    toasted = np.clip(height / (BAGEL_HEIGHT * tube) + 0.25 * _mottle(0.012, rng), 0, 1)
    seeded = _seeds(shift, ring, tube, rng)
    return _with_debris(Relief(height, np.where(seeded, SEED, CRUMB + toasted * (CRUST - CRUMB))), CRUMB, rng)


def rope(rng: np.random.Generator) -> Relief:
    """A bent rope of three strands, one of them colored, cut at both ends."""
    (x, y), shift, turn = grid(), rng.uniform(-0.004, 0.004, 2), rng.uniform(-0.12, 0.12)
    along = np.cos(turn) * (x - shift[0]) + np.sin(turn) * (y - shift[1])
    across = np.cos(turn) * (y - shift[1]) - np.sin(turn) * (x - shift[0])
    bend, period, phase = rng.uniform(0.004, 0.01), rng.uniform(0.13, 0.2), rng.uniform(0, 2 * np.pi)
    wave, steepest = 2 * np.pi / period * along + phase, bend * 2 * np.pi / period
    sideways = (across - bend * np.sin(wave)) / np.sqrt(1 + (steepest * np.cos(wave)) ** 2)
    radius = ROPE_RADIUS_M + rng.normal(0, 2e-4)
    around = (
        np.arccos(np.clip(sideways / radius, -1, 1)) - ROPE_TWIST_PER_M * along + rng.uniform(0, 2 * np.pi)
    )
    groove = ROPE_GROOVE_M * (1 - np.abs(np.cos(ROPE_STRANDS / 2 * around)))
    height = _round_top(sideways, radius - groove, ROPE_HEIGHT * radius) * (np.abs(along) < ROPE_LENGTH_M / 2)
    marked = np.floor(ROPE_STRANDS * around / (2 * np.pi) + 0.5) % ROPE_STRANDS == 0
    color = np.where(marked, MARKER, FIBER) * (0.9 + 0.1 * _mottle(0.004, rng))
    return _with_debris(Relief(height, color), FIBER, rng)


def with_bump(part: Relief, rng: np.random.Generator) -> Relief:
    """Geometry only: a knob grows out of the surface, of the color around it."""
    center, normal, radius = _spot(part, rng)
    knob = _ball(center - 0.3 * radius * normal, radius)
    return Relief(np.where(part.height > 0, np.fmax(part.height, knob[1]), 0), part.color)


def with_dent(part: Relief, rng: np.random.Generator) -> Relief:
    """Geometry only: a ball was pressed into the surface; the color is that around it."""
    center, normal, radius = _spot(part, rng)
    stamp = _ball(center + 0.35 * radius * normal, radius)
    return Relief(np.fmin(part.height, stamp[0]), part.color)


def with_stain(part: Relief, rng: np.random.Generator) -> Relief:
    """Color only: a dark patch of ragged outline."""
    (x, y), (center, _, radius) = grid(), _spot(part, rng)
    stained = np.hypot(x - center[0], y - center[1]) < radius * (0.9 + 0.2 * _mottle(0.006, rng))
    return Relief(part.height, np.where(stained, STAIN, part.color))


def _spot(part: Relief, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """A place for a defect: center (3,) on the surface, normal (3,) there, and a radius in metres."""
    (x, y), normals = grid(), part.normals()
    suitable = (part.height > SPOT_HEIGHT_M) & (facing_camera(normals) > SPOT_COSINE)
    row, column = np.divmod(rng.choice(np.flatnonzero(suitable)), COLUMNS)
    center = np.array([x[0, column], y[row, 0], part.height[row, column]])
    return center, normals[:, row, column], rng.uniform(*SPOT_RADIUS_M)


def _with_debris(part: Relief, color: np.ndarray, rng: np.random.Generator) -> Relief:
    """The same, and in some samples a crumb in one of the corners."""
    if rng.random() > DEBRIS_SHARE:
        return part
    corner = rng.choice([-1.0, 1.0], 2) * rng.uniform(*DEBRIS_OFFSET_M, 2)
    _, crumb = _ball(np.array([*corner, 0.8 * DEBRIS_RADIUS_M]), DEBRIS_RADIUS_M)
    where = np.isfinite(crumb)
    return Relief(np.where(where, crumb, part.height), np.where(where, color, part.color))


def _seeds(center: np.ndarray, ring: float, tube: float, rng: np.random.Generator) -> np.ndarray:
    """Which points (ROWS, COLUMNS) of a bagel a seed covers; seeds are mostly on top."""
    angle, tilt = rng.uniform(0, 2 * np.pi, BAGEL_SEEDS), rng.normal(0, SEED_TILT, BAGEL_SEEDS)
    off_axis = ring + tube * np.sin(tilt)
    column = (center[0] + off_axis * np.cos(angle)) / PITCH_M + COLUMNS / 2
    row = (center[1] + off_axis * np.sin(angle)) / PITCH_M + ROWS / 2
    bare = np.ones((ROWS, COLUMNS), dtype=bool)
    bare[row.astype(int), column.astype(int)] = False
    return ndimage.distance_transform_edt(bare) * PITCH_M < SEED_RADIUS_M


def _round_top(sideways: np.ndarray, half_width: np.ndarray, height: float) -> np.ndarray:
    """Height of half an ellipse at the place `sideways` from its middle; 0 beside it."""
    return height * np.sqrt(np.maximum(1 - (sideways / half_width) ** 2, 0))


def _ball(center: np.ndarray, radius: float) -> np.ndarray:
    """Lower and upper height (2, ROWS, COLUMNS) of a ball; NaN beside it."""
    x, y = grid()
    above = radius**2 - (x - center[0]) ** 2 - (y - center[1]) ** 2
    half = np.sqrt(np.where(above > 0, above, np.nan))
    return np.stack([center[2] - half, center[2] + half])


def _mottle(wavelength_m: float, rng: np.random.Generator, waves: int = 6) -> np.ndarray:
    """A smooth random field (ROWS, COLUMNS), about -1 to 1: a sum of plane waves."""
    (x, y), frequency = grid(), 2 * np.pi / wavelength_m
    angle, phase = rng.uniform(0, 2 * np.pi, (2, waves, 1))
    along_x, along_y = (np.exp(1j * frequency * part) for part in (np.cos(angle) * x, np.sin(angle) * y.T))
    return (along_y.T @ (np.exp(1j * phase) * along_x)).imag / np.sqrt(waves)
