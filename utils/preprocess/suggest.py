"""Distances for the preprocessing of one's own parts, suggested from their clouds."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from scipy.spatial import KDTree

from utils.preprocess.plane import plane_distance
from utils.preprocess.sample import Parameters, background_plane

NOISE_QUANTILE = 0.99  # of the border's distances to the plane: what a background still shows
PLANE_MARGIN = 1.25  # background_distance over plane_distance, as in the defaults (0.005 over 0.004)
# Margins with which MVTec 3D-AD's cable_gland gets about the released distances (4.2, 5.3, 6.0 mm for 4, 5, 6).
NOISE_MARGIN = 3.0  # plane_distance over the noise of the background
NEIGHBOR_MARGIN = 6.0  # cluster_eps over the distance that holds cluster_min_points neighbors
MOST_CLOUDS = 4
MOST_POINTS = 2_000  # of a cloud, for the neighbors' distances
LARGEST_PLANE_M = 0.05  # a border farther than that from its plane is no plane


def suggest_distances(clouds: Iterable[np.ndarray], parameters: Parameters) -> dict[str, float]:
    """plane_distance, background_distance and cluster_eps in metres, from raw clouds (H, W, 3) in metres.

    plane_distance is three times what holds nearly all of the background, cluster_eps six times what holds
    cluster_min_points neighbors of most points; the medians over the first few clouds. Raises ValueError when
    none of them shows a background plane.
    """
    few = islice(clouds, MOST_CLOUDS)
    found = [of_one for cloud in few if (of_one := _of_one(cloud, parameters)) is not None]
    if not found:
        raise ValueError(
            "no cloud shows a background plane at its border; preprocess such parts by other means"
        )
    plane, eps = np.median(found, axis=0)
    return {
        "plane_distance": _rounded(plane),
        "background_distance": _rounded(PLANE_MARGIN * plane),
        "cluster_eps": _rounded(eps),
    }


def _of_one(cloud: np.ndarray, parameters: Parameters) -> tuple[float, float] | None:
    """(noise of the background, distance for the clustering) of one cloud; None without a plane."""
    plane = background_plane(cloud, parameters, np.random.default_rng(parameters.seed))
    if plane is None:
        return None
    points = cloud[cloud.all(axis=2)].astype(np.float64)
    distances = plane_distance(points, plane)
    near = distances[distances < LARGEST_PLANE_M]
    background = near[near < 3 * np.median(near)] if len(near) else near  # the part stands above it
    if not len(background):
        return None
    few = points[:: max(1, len(points) // MOST_POINTS)]
    rank = min(parameters.cluster_min_points, len(points))
    neighbor_distance = KDTree(points).query(few, k=[rank])[0]
    return NOISE_MARGIN * float(np.quantile(background, NOISE_QUANTILE)), NEIGHBOR_MARGIN * float(
        np.median(neighbor_distance)
    )


def _rounded(value: float) -> float:
    """To a tenth of a millimetre, upwards."""
    return float(np.ceil(value * 1e4) / 1e4)
