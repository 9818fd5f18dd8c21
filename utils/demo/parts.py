"""The two parts of the demo data set, how they vary from sample to sample, and their defects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import spatial

from utils.demo.scene import DistanceFunction, Part

BAGEL_RING_M, BAGEL_TUBE_M = 0.0235, 0.0115  # radius of the ring's centre line, and of its tube
BAGEL_SEEDS, SEED_RADIUS_M = 110, 0.0014
CRUST, CRUMB, SEED = np.array([[0.66, 0.38, 0.15], [0.90, 0.68, 0.38], [0.97, 0.91, 0.74]])[..., None]

ROPE_LENGTH_M, ROPE_RADIUS_M = 0.115, 0.0125
ROPE_STRANDS, ROPE_TWIST_PER_M, ROPE_GROOVE_M = 3, 200.0, 0.0016
FIBRE, MARKER = np.array([[0.80, 0.74, 0.58], [0.22, 0.36, 0.62]])[..., None]

DEBRIS_SHARE, DEBRIS_RADIUS_M = 0.3, 0.0045  # a crumb beside the part, for preprocessing to remove
DEBRIS_OFFSET_M = (0.037, 0.042)  # from the middle, to either side
BLEND_M = 0.0012  # width over which a bump merges with the surface
STAIN_COLOR = np.array([0.10, 0.05, 0.09])[:, None]

Field = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Spot:
    """Where a defect is: centre (3,) on the surface, normal (3,) there, both scene frame; radius in metres."""

    center: np.ndarray
    normal: np.ndarray
    radius: float


def bagel(rng: np.random.Generator) -> Part:
    """A ring of uneven thickness with seeds on its crust, near the middle, turned at random."""
    to_part = _placement(rng, shift_m=0.003, turn=np.pi)
    ring, tube = BAGEL_RING_M + rng.normal(0, 5e-4), BAGEL_TUBE_M + rng.normal(0, 3e-4)
    swell, phase = rng.uniform(0, 0.04, 2), rng.uniform(0, 2 * np.pi, 2)

    def distance(points: np.ndarray) -> np.ndarray:
        x, y, z = to_part(points)
        angle, off_axis = np.arctan2(y, x), np.sqrt(x**2 + y**2)
        uneven = swell[0] * np.cos(angle + phase[0]) + swell[1] * np.cos(3 * angle + phase[1])
        return np.sqrt((off_axis - ring) ** 2 + (z - 0.9 * tube) ** 2) - tube * (1 + uneven)

    seeds = spatial.KDTree(_seed_positions(ring, tube, rng))
    mottle = _mottle(rng, wavelength_m=0.012)

    def color(points: np.ndarray) -> np.ndarray:
        local = to_part(points)
        toasted = np.clip(local[2] / (2 * tube) + 0.25 * mottle(local), 0, 1)
        gap, _ = seeds.query(local.T)
        return np.where(gap < SEED_RADIUS_M, SEED, CRUMB + toasted * (CRUST - CRUMB))

    return Part(_with_debris(distance, rng), color)


def rope(rng: np.random.Generator) -> Part:
    """A bent rope of three strands, one of them coloured, cut at both ends."""
    to_part = _placement(rng, shift_m=0.004, turn=0.12)
    bend, period, phase = rng.uniform(0.004, 0.01), rng.uniform(0.13, 0.2), rng.uniform(0, 2 * np.pi)
    radius, roll = ROPE_RADIUS_M + rng.normal(0, 2e-4), rng.uniform(0, 2 * np.pi)

    def across(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position along the rope, distance from its centre line, and angle within the twisted strands."""
        x, y, z = to_part(points)
        wave = 2 * np.pi / period * x + phase
        slope = bend * 2 * np.pi / period * np.cos(wave)
        sideways, up = (y - bend * np.sin(wave)) / np.sqrt(1 + slope**2), z - radius
        return x, np.sqrt(sideways**2 + up**2), np.arctan2(up, sideways) - ROPE_TWIST_PER_M * x + roll

    def distance(points: np.ndarray) -> np.ndarray:
        along, off_axis, twisted = across(points)
        groove = ROPE_GROOVE_M * (1 - np.abs(np.cos(ROPE_STRANDS / 2 * twisted)))
        return np.maximum(off_axis - radius + groove, np.abs(along) - ROPE_LENGTH_M / 2)

    mottle = _mottle(rng, wavelength_m=0.004)

    def color(points: np.ndarray) -> np.ndarray:
        strand = np.floor(ROPE_STRANDS * across(points)[2] / (2 * np.pi) + 0.5) % ROPE_STRANDS
        return np.where(strand == 0, MARKER, FIBRE) * (0.9 + 0.1 * mottle(to_part(points)))

    return Part(_with_debris(distance, rng), color)


def with_bump(part: Part, spot: Spot) -> Part:
    """Geometry only: a knob grows out of the surface, of the colour around it."""
    knob = _ball(spot.center - 0.3 * spot.radius * spot.normal, spot.radius)

    def distance(points: np.ndarray) -> np.ndarray:
        surface, ball = part.distance(points), knob(points)
        share = np.clip(0.5 + 0.5 * (ball - surface) / BLEND_M, 0, 1)
        return ball + share * (surface - ball) - BLEND_M * share * (1 - share)

    return Part(distance, part.color)


def with_dent(part: Part, spot: Spot) -> Part:
    """Geometry only: a ball was pressed into the surface; the colour is that around it."""
    stamp = _ball(spot.center + 0.35 * spot.radius * spot.normal, spot.radius)
    return Part(lambda points: np.maximum(part.distance(points), -stamp(points)), part.color)


def with_stain(part: Part, spot: Spot, rng: np.random.Generator) -> Part:
    """Colour only: a dark patch of ragged outline."""
    ragged = _mottle(rng, wavelength_m=0.006)
    middle = _ball(spot.center, 0.9 * spot.radius)

    def color(points: np.ndarray) -> np.ndarray:
        stained = middle(points) < 0.2 * spot.radius * ragged(points)
        return np.where(stained, STAIN_COLOR, part.color(points))

    return Part(part.distance, color)


def _seed_positions(ring: float, tube: float, rng: np.random.Generator) -> np.ndarray:
    """(BAGEL_SEEDS, 3) in part coordinates, mostly on top."""
    angle, tilt = rng.uniform(0, 2 * np.pi, BAGEL_SEEDS), rng.normal(0, 0.6, BAGEL_SEEDS)
    off_axis = ring + tube * np.sin(tilt)
    height = 0.9 * tube + tube * np.cos(tilt)
    return np.stack([off_axis * np.cos(angle), off_axis * np.sin(angle), height], axis=1)


def _with_debris(distance: DistanceFunction, rng: np.random.Generator) -> DistanceFunction:
    """The same, and in some samples a crumb in one of the corners."""
    if rng.random() > DEBRIS_SHARE:
        return distance
    corner = rng.choice([-1.0, 1.0], 2) * rng.uniform(*DEBRIS_OFFSET_M, 2)
    crumb = _ball(np.array([*corner, 0.8 * DEBRIS_RADIUS_M]), DEBRIS_RADIUS_M)
    return lambda points: np.minimum(distance(points), crumb(points))


def _ball(center: np.ndarray, radius: float) -> DistanceFunction:
    return lambda points: np.sqrt(((points - center[:, None]) ** 2).sum(axis=0)) - radius


def _placement(rng: np.random.Generator, shift_m: float, turn: float) -> Field:
    """Map from scene to part coordinates, (3, N) each: a random place, and an angle up to `turn` radians."""
    dx, dy = rng.uniform(-shift_m, shift_m, 2)
    angle = rng.uniform(-turn, turn)
    cos, sin = np.cos(angle), np.sin(angle)

    def to_part(points: np.ndarray) -> np.ndarray:
        x, y = points[0] - dx, points[1] - dy
        return np.stack([cos * x + sin * y, cos * y - sin * x, points[2]])

    return to_part


def _mottle(rng: np.random.Generator, wavelength_m: float, waves: int = 6) -> Field:
    """A smooth random field over space, (3, N) -> (N,), about -1 to 1: a sum of plane waves."""
    directions = rng.standard_normal((waves, 3))
    frequencies = 2 * np.pi / wavelength_m * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, (waves, 1))

    def field(points: np.ndarray) -> np.ndarray:
        return np.sin(np.einsum("wi,in->wn", frequencies, points) + phases).sum(axis=0) / np.sqrt(waves)

    return field
