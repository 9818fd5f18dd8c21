"""Procedural parts as an industrial 3D sensor sees them: the geometry and the camera of the demo data set.

Parts are signed distance functions, so that one sphere tracer serves the camera, the sensor's shadow and
the defects. Scene frame, in metres: x and y in the background plane, z = height above it, origin where the
optical axis meets the plane. Camera frame: camera at the origin, looking along +z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

DistanceFunction = Callable[[np.ndarray], np.ndarray]  # (3, N) scene points -> (N,) signed distance in metres
ColorFunction = Callable[[np.ndarray], np.ndarray]  # (3, N) scene points -> (3, N) colour in 0..1

CAMERA_DISTANCE_M = 0.5  # along the optical axis
FIELD_OF_VIEW_M = 0.1  # height of the background that the image shows
PLANE_NORMAL = np.array(
    [-0.11, 0.35, -0.93]
)  # camera frame; a tilt of about 21 degrees, as a real set-up has
PROJECTOR_M = np.array([0.28, -0.03, 0.45])  # scene frame; the sensor measures only what this light reaches
LAMP_DIRECTION = np.array([-0.45, 0.35, 0.82])  # scene frame, towards the lamp
AMBIENT_LIGHT = 0.35
TALLEST_M = 0.032  # no part is higher

MAX_STEPS = 40
STEP_SHARE = 0.85  # the distance functions are approximate: a full step could pass through a surface
HIT_M = 2e-4
NORMAL_STEP_M = 2e-4

PART_NOISE_M, BACKGROUND_NOISE_M = 2e-5, 8e-5  # along the ray, as measured on MVTec 3D-AD's cable_gland
PART_SPECKLE, BACKGROUND_SPECKLE = 0.01, 0.35  # share of missing pixels, as there
DEPTH_EDGE_M, EDGE_SHARE = 0.002, 0.8
GRAZING_COSINE = 0.2
OUTLIER_SHARE, OUTLIER_M = 1e-4, 0.01
CLOTH_BRIGHTNESS, COLOR_NOISE = 0.1, 0.012


@dataclass(frozen=True)
class Part:
    """What lies on the background: its surface, and the colour at each point of it."""

    distance: DistanceFunction
    color: ColorFunction


@dataclass(frozen=True)
class View:
    """What the camera would see without noise, at H x W pixels in row-major order, N = H * W.

    rays (3, N) camera frame, z = 1; depth (N,) metres along the optical axis; points and normals (3, N)
    scene frame; on_part (N,) bool, False = background plane.
    """

    height: int
    width: int
    rays: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    on_part: np.ndarray

    def image(self, values: np.ndarray) -> np.ndarray:
        """(N,) or (C, N) as (H, W) or (H, W, C)."""
        return values.T.reshape(self.height, self.width, *values.shape[:-1])

    def facing_camera(self) -> np.ndarray:
        """Cosine (N,) between the surface's normal and the way back along the optical axis."""
        return _cosine(self.normals, -_scene_axes()[:, 2])


def focal_length(height: int) -> float:
    """Focal length in pixels of the camera whose image has `height` rows."""
    return height * CAMERA_DISTANCE_M / FIELD_OF_VIEW_M


def principal_point(height: int, width: int) -> tuple[float, float]:
    """Column and row of the optical axis, between pixels: a coordinate of exactly 0 would read as missing."""
    return width // 2 - 0.3, height // 2 - 0.3


def observe(part: Part, height: int, width: int) -> View:
    """Trace one ray a pixel to the part, or to the background behind it."""
    axes = _scene_axes()
    rays = _camera_rays(height, width)
    camera = -CAMERA_DISTANCE_M * axes[:, 2:]  # (3, 1)
    directions = _rotate(axes, rays)
    enter, plane = (TALLEST_M - camera[2]) / directions[2], -camera[2] / directions[2]
    travelled, on_part = trace(part.distance, camera + enter * directions, directions, plane - enter)
    depth = enter + travelled
    points = camera + depth * directions
    normals = np.zeros_like(points)
    normals[2] = 1
    normals[:, on_part] = surface_normals(part.distance, points[:, on_part])
    return View(height, width, rays, depth, points, normals, on_part)


def trace(
    distance: DistanceFunction, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sphere tracing of N rays, origin + t * direction, directions (3, N) of about unit length.

    Returns t (N,), which is `reach` where no surface was met before it, and whether one was met (N,).
    """
    t, hit = np.zeros(reach.shape), np.zeros(reach.shape, dtype=bool)
    active = np.arange(reach.size)
    for _ in range(MAX_STEPS):
        before = t.take(active)
        gap = distance(origins.take(active, axis=1) + before * directions.take(active, axis=1))
        after = before + np.where(gap < HIT_M, gap, STEP_SHARE * gap)
        t[active], hit[active] = after, gap < HIT_M
        active = active[(gap >= HIT_M) & (after < reach.take(active))]
        if active.size == 0:
            break
    hit &= t < reach
    return np.where(hit, t, reach), hit


def surface_normals(distance: DistanceFunction, points: np.ndarray) -> np.ndarray:
    """Unit normals (3, N) at surface points (3, N): the gradient of the distance by central differences."""
    steps = np.eye(3)[..., None] * NORMAL_STEP_M
    gradient = np.stack([distance(points + step) - distance(points - step) for step in steps])
    return gradient / np.maximum(np.sqrt((gradient**2).sum(axis=0)), 1e-12)


def photograph(view: View, part: Part, rng: np.random.Generator) -> np.ndarray:
    """Colour image (H, W, 3) uint8: the part and a dark cloth in diffuse and ambient light, camera noise."""
    cloth = CLOTH_BRIGHTNESS * (1 + 0.3 * smooth_noise((view.height, view.width), 2.0, rng))
    color = np.tile(cloth.ravel(), (3, 1))
    color[:, view.on_part] = part.color(view.points[:, view.on_part])
    light = AMBIENT_LIGHT + (1 - AMBIENT_LIGHT) * np.clip(_cosine(view.normals, LAMP_DIRECTION), 0, 1)
    noisy = color * light + rng.normal(0, COLOR_NOISE, color.shape)
    return view.image((np.clip(noisy, 0, 1) * 255).round().astype(np.uint8))


def measure(view: View, part: Part, rng: np.random.Generator) -> np.ndarray:
    """Organised cloud (H, W, 3) float32 in metres, camera frame, as the sensor delivers it.

    Noise along the ray and a few points far off the surface; (0, 0, 0) at random pixels, at depth edges, on
    grazing surfaces and where the projector's light doesn't reach.
    """
    n = view.depth.size
    depth = view.depth + np.where(view.on_part, PART_NOISE_M, BACKGROUND_NOISE_M) * rng.standard_normal(n)
    depth -= (rng.random(n) < OUTLIER_SHARE) * rng.uniform(OUTLIER_M, 2 * OUTLIER_M, n)
    missing = rng.random(n) < np.where(view.on_part, PART_SPECKLE, BACKGROUND_SPECKLE)
    missing |= _depth_edges(view) & (rng.random(n) < EDGE_SHARE)
    missing |= view.facing_camera() < GRAZING_COSINE
    measured = np.flatnonzero(~missing)
    missing[measured] = in_shadow(part, view.points[:, measured], view.normals[:, measured])
    return view.image(np.where(missing, 0, view.rays * depth).astype(np.float32))


def in_shadow(part: Part, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Which surface points (3, N) the part hides from the projector."""
    starts = points + 1e-3 * normals  # off the surface, or every point would hide itself
    directions = PROJECTOR_M[:, None] - starts
    directions /= np.sqrt((directions**2).sum(axis=0))
    above_all = np.maximum(TALLEST_M - starts[2], 0) / directions[2]
    return trace(part.distance, starts, directions, above_all)[1]


def smooth_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and standard deviation 1, smoothed over `sigma` pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return (noise - noise.mean()) / noise.std()


def _scene_axes() -> np.ndarray:
    """Rotation (3, 3) from the camera's axes to the scene's; x stays as near to the camera's x as it can."""
    normal = PLANE_NORMAL / np.linalg.norm(PLANE_NORMAL)
    along_x = np.array([1.0, 0.0, 0.0]) - normal[0] * normal
    along_x /= np.linalg.norm(along_x)
    return np.stack([along_x, np.cross(normal, along_x), normal])


def _camera_rays(height: int, width: int) -> np.ndarray:
    rows, columns = (index.ravel() for index in np.mgrid[:height, :width])
    center_x, center_y = principal_point(height, width)
    x, y = (columns - center_x) / focal_length(height), (rows - center_y) / focal_length(height)
    return np.stack([x, y, np.ones_like(x)])


def _rotate(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(3, 3) times (3, N) without BLAS, whose threads cost more than such thin products."""
    return np.einsum("ij,jn->in", rotation, vectors)


def _cosine(normals: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Cosine of the angle between unit normals (3, N) and a direction (3,)."""
    return np.einsum("i,in->n", direction / np.linalg.norm(direction), normals)


def _depth_edges(view: View) -> np.ndarray:
    """Pixels (N,) beside a jump in depth."""
    depth = view.image(view.depth)
    return (ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3) > DEPTH_EDGE_M).ravel()
