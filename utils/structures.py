"""What travels between the parts: sample -> prepared geometry -> patches -> score. Importing it costs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

Modality = Literal["xyz", "rgb", "fusion"]


@dataclass(frozen=True)
class Sample:
    """One part as the model sees it, S = image side (224); no ground truth.

    image (3, S, S) float32, normalised with ImageNet's mean and std; points (N, 3) float32 in metres, the
    pixels that exist, in row-major order; pixel_index (N,) int64, where each point stands in the S*S image;
    remarks: what was odd about the sample, for the report.
    """

    image: np.ndarray
    points: np.ndarray
    pixel_index: np.ndarray
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleFiles:
    """The files of one sample, and its ground truth, which only evaluation looks at.

    label: 0 = good, 1 = anomalous, None = not known; mask is None for good samples, whatever lies in their gt folder,
    and where it is not known; path is that of the rgb file relative to the class folder, '/'-separated.
    """

    rgb: Path
    xyz: Path
    mask: Path | None
    label: int | None
    path: str

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.path


@dataclass(frozen=True)
class PointGroups:
    """Groups of neighbors around centers found by farthest point sampling.

    groups (G, M, 3) float32, relative to their center; centers (G, 3) float32 in metres.
    """

    groups: np.ndarray
    centers: np.ndarray


@dataclass(frozen=True)
class AlignmentOperator:
    """PFA as a sparse matrix (P, G), P = side * side, of which only the rows that are not empty are kept.

    patch_of_row (U,) int64: the patch of each kept row, ascending; crow (U + 1,) int64, col (nnz,) int64 and
    value (nnz,) float32: the kept rows in CSR form.
    """

    patch_of_row: np.ndarray
    crow: np.ndarray
    col: np.ndarray
    value: np.ndarray
    side: int
    num_group: int


@dataclass(frozen=True)
class Patches:
    """Patch features of one sample on a square grid, each distinct row stored once.

    rows (U, D) float; row_of_patch (P,) int64, row-major, P = side * side. Patches without a point share one
    row of zeros, so an xyz map of 3136 patches has about a thousand rows.
    """

    rows: torch.Tensor
    row_of_patch: torch.Tensor
    side: int

    def dense(self) -> torch.Tensor:
        """All patches, (P, D)."""
        return self.rows[self.row_of_patch]

    def to(self, device: torch.device | str) -> Patches:
        """The same patches on a device; those that are there are not copied."""
        return Patches(self.rows.to(device), self.row_of_patch.to(device), self.side)


@dataclass(frozen=True)
class Score:
    """What one bank, or the decision, says of one sample; higher = more anomalous.

    image: the image score; map (S, S) float32: the pixel scores.
    """

    image: float
    map: np.ndarray


@dataclass(frozen=True)
class Thresholds:
    """Scores above which an image, or a pixel, is anomalous, and what they follow from, in words."""

    image: float
    pixel: float
    origin: str
