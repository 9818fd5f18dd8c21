"""Made-up parts as an industrial 3D sensor sees them: a relief on a tilted plane, a camera, a projector, noise.

Scene frame, in metres: x and y in the background plane, z = height above it, origin where the optical axis
meets the plane. Camera frame: camera at the origin, looking along +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

PITCH_M = 1 / 3000  # of the grid: a pixel and a third of the default images
ROWS, COLUMNS = 450, 600
TALLEST_M = 0.026  # no part is higher
STEPS, BISECTIONS = 26, 7  # along a ray, then within a step: below 0.01 mm

CAMERA_DISTANCE_M = 0.5  # along the optical axis
FIELD_OF_VIEW_M = 0.1  # height of the background that the image shows
PLANE_NORMAL = np.array(
    [-0.11, 0.35, -0.93]
)  # camera frame; a tilt of about 21 degrees, as a real set-up has
PROJECTOR_M = np.array([0.28, -0.03, 0.45])  # scene frame; the sensor measures only what this light reaches
LAMP_DIRECTION = np.array([-0.45, 0.35, 0.82])  # scene frame, towards the lamp
AMBIENT_LIGHT = 0.35
CLOTH_BRIGHTNESS, COLOR_NOISE = 0.1, 0.012

PART_NOISE_M, BACKGROUND_NOISE_M = 2e-5, 8e-5  # along the ray, as measured on MVTec 3D-AD's cable_gland
PART_SPECKLE, BACKGROUND_SPECKLE = 0.01, 0.35  # share of missing pixels, as there
OUTLIER_SHARE, OUTLIER_M = 1e-4, 0.01
DEPTH_EDGE_M, EDGE_SHARE = 0.002, 0.8
GRAZING_COSINE = 0.2
ABOVE_SURFACE_M = 1e-3  # where a shadow ray starts, or every point would hide itself


@dataclass(frozen=True)
class Relief:
    """A part on the background plane, on the points of `grid`.

    height (ROWS, COLUMNS) in metres, 0 = background; color (3, ROWS, COLUMNS) in 0..1, of the part only.
    """

    height: np.ndarray
    color: np.ndarray

    def normals(self) -> np.ndarray:
        """Unit normals (3, ROWS, COLUMNS) of the surface."""
        slope_y, slope_x = np.gradient(self.height, PITCH_M)
        return np.stack([-slope_x, -slope_y, np.ones_like(slope_x)]) / np.sqrt(1 + slope_x**2 + slope_y**2)


@dataclass(frozen=True)
class View:
    """What the camera would see of a relief without noise, at H x W pixels in row-major order, N = H * W.

    rays (3, N) camera frame, z = 1; depth (N,) metres along the optical axis; points (3, N) and normals (3, N)
    scene frame; on_part (N,) bool, False = background.
    """

    shape: tuple[int, int]
    rays: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    on_part: np.ndarray


def grid() -> tuple[np.ndarray, np.ndarray]:
    """x (1, COLUMNS) and y (ROWS, 1) of a relief's points, in metres."""
    x, y = np.arange(COLUMNS) - COLUMNS / 2, np.arange(ROWS) - ROWS / 2
    return PITCH_M * x[None], PITCH_M * y[:, None]


def focal_length(height: int) -> float:
    """Focal length in pixels of the camera whose image has `height` rows."""
    return height * CAMERA_DISTANCE_M / FIELD_OF_VIEW_M


def principal_point(height: int, width: int) -> tuple[float, float]:
    """Column and row of the optical axis, between pixels: a coordinate of exactly 0 would read as missing."""
    return width // 2 - 0.3, height // 2 - 0.3


def facing_camera(normals: np.ndarray) -> np.ndarray:
    """Cosine between normals (3, ...) and the way back along the optical axis."""
    return np.einsum("i,i...->...", -_scene_axes()[:, 2], normals)


def observe(relief: Relief, height: int, width: int) -> View:
    """Trace one ray a pixel to the part, or to the background beside it."""
    axes = _scene_axes()
    rays = _camera_rays(height, width)
    camera = -CAMERA_DISTANCE_M * axes[:, 2:]  # (3, 1)
    directions = np.einsum("ij,jn->in", axes, rays)
    top, plane = (TALLEST_M - camera[2]) / directions[2], -camera[2] / directions[2]
    share = _trace(relief, camera + top * directions, camera + plane * directions)
    depth = top + share * (plane - top)
    points = camera + depth * directions
    return View((height, width), rays, depth, points, look_up(relief.normals(), points), share < 1)


def photograph(view: View, relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Color image (H, W, 3) uint8: the part and a dark cloth in diffuse and ambient light, camera noise."""
    cloth = ndimage.gaussian_filter(rng.standard_normal(view.shape), 2.0)
    cloth = CLOTH_BRIGHTNESS * (1 + 0.3 * cloth / cloth.std())
    color = np.where(view.on_part, look_up(relief.color, view.points), cloth.ravel())
    lamp = LAMP_DIRECTION / np.linalg.norm(LAMP_DIRECTION)
    light = AMBIENT_LIGHT + (1 - AMBIENT_LIGHT) * np.clip(np.einsum("i,in->n", lamp, view.normals), 0, 1)
    noisy = color * light + rng.normal(0, COLOR_NOISE, color.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8).T.reshape(*view.shape, 3)


def measure(view: View, relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Organised cloud (H, W, 3) float32 in metres, camera frame, as the sensor delivers it.

    Noise along the ray and a few points far off the surface; (0, 0, 0) at random pixels, at depth edges, on
    grazing surfaces and where the projector's light doesn't reach.
    """
    n = view.depth.size
    depth = view.depth + np.where(view.on_part, PART_NOISE_M, BACKGROUND_NOISE_M) * rng.standard_normal(n)
    depth -= (rng.random(n) < OUTLIER_SHARE) * rng.uniform(OUTLIER_M, 2 * OUTLIER_M, n)
    missing = rng.random(n) < np.where(view.on_part, PART_SPECKLE, BACKGROUND_SPECKLE)
    missing |= _depth_edges(view) & (rng.random(n) < EDGE_SHARE)
    missing |= (facing_camera(view.normals) < GRAZING_COSINE) | _in_shadow(view, relief)
    return np.where(missing, 0, view.rays * depth).T.reshape(*view.shape, 3).astype(np.float32)


def look_up(fields: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (C, N) of fields (C, ROWS, COLUMNS) on a relief's grid at points (3, N)."""
    places = _places(points)
    return np.stack([ndimage.map_coordinates(field, places, order=1, mode="nearest") for field in fields])


def _trace(relief: Relief, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Share (N,) of the way from start to end, (3, N) each, at which it first meets the relief; 1 = never."""
    heights, share = relief.height.astype(np.float32).ravel(), np.ones(start.shape[1])
    first, way = (points.astype(np.float32) for points in (start, end - start))
    for step in np.arange(1, STEPS, dtype=np.float32) / STEPS:
        points = first + step * way
        share[(share == 1) & (heights[_cells(points)] > points[2])] = step
    hit = np.flatnonzero(share < 1)
    start, way = start[:, hit], (end - start)[:, hit]
    above, below = share[hit] - 1 / STEPS, share[hit]
    for _ in range(BISECTIONS):
        middle = (above + below) / 2
        points = start + middle * way
        met = look_up(relief.height[None], points)[0] > points[2]
        above, below = np.where(met, above, middle), np.where(met, middle, below)
    share[hit] = below
    return share


def _in_shadow(view: View, relief: Relief) -> np.ndarray:
    """Which seen points (N,) the part hides from the projector."""
    start = view.points + ABOVE_SURFACE_M * view.normals
    way = PROJECTOR_M[:, None] - start
    return _trace(relief, start, start + way * (TALLEST_M - start[2]) / way[2]) < 1


def _depth_edges(view: View) -> np.ndarray:
    """Pixels (N,) beside a jump in depth."""
    depth = view.depth.reshape(view.shape)
    return (ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3) > DEPTH_EDGE_M).ravel()


def _places(points: np.ndarray) -> np.ndarray:
    """Fractional row and column (2, N) in a relief's grid below points (3, N)."""
    return points[1::-1] / PITCH_M + np.array([[ROWS // 2], [COLUMNS // 2]], dtype=points.dtype)


def _cells(points: np.ndarray) -> np.ndarray:
    """Row-major index (N,) of the nearest point of a relief's grid."""
    row, column = _places(points).round().astype(np.int32)
    return row.clip(0, ROWS - 1) * COLUMNS + column.clip(0, COLUMNS - 1)


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
