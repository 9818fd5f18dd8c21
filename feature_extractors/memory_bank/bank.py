"""A PatchCore memory bank: rows of normal patches, and the score of a sample against them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from feature_extractors.memory_bank.anomaly_map import Blur, anomaly_map
from feature_extractors.memory_bank.coreset import greedy_coreset, sparse_projection
from feature_extractors.memory_bank.nearest import NearestRows
from feature_extractors.memory_bank.training_patches import Standardization, TrainingPatches
from feature_extractors.settings import Settings
from utils.structures import Patches, Score

REWEIGHT_NEIGHBORS = (
    3  # bank rows around m*, itself among them, in the weight of the image score (PatchCore's b)
)


@dataclass(frozen=True)
class ScoreRule:
    """How distances become an image score and a map; see MethodSpec and Quirks for the fields."""

    reweight_eps: float
    distance_scale: float
    leave_out_self: bool
    blur: Blur
    image_size: int

    @classmethod
    def of(cls, settings: Settings) -> ScoreRule:
        return cls(
            reweight_eps=settings.method.reweight_eps,
            distance_scale=settings.method.distance_scale,
            leave_out_self=settings.quirks.reweight_neighbours == "without_self",
            blur=settings.quirks.blur,
            image_size=settings.img_size,
        )


class MemoryBank:
    """Rows (n, D) of normal patches, standardised; scores samples whose patches are not.

    Scores are higher = more anomalous. ValueError for fewer rows than a weight takes.
    """

    def __init__(self, rows: torch.Tensor, standardization: Standardization, rule: ScoreRule) -> None:
        if len(rows) < REWEIGHT_NEIGHBORS:
            raise ValueError(
                f"a memory bank of {len(rows)} rows can't weigh its scores, which takes {REWEIGHT_NEIGHBORS}; "
                "use more training samples or a larger --f_coreset"
            )
        self.rows = rows
        self.standardization = standardization
        self.rule = rule
        self._search = NearestRows(rows)

    @torch.inference_mode()
    def score(self, patches: Patches) -> Score:
        """Image score and map of one sample."""
        rows = self.standardization.apply(patches.rows)
        distance, nearest = self._search.nearest(rows)
        worst = int(distance.argmax())  # p*, the row of the patch of largest distance
        image_score = self._reweighted(rows[worst], float(distance[worst]), int(nearest[worst]))
        rule = self.rule
        pixel_scores = anomaly_map(distance[patches.row_of_patch], patches.side, rule.image_size, rule.blur)
        return Score(image_score, pixel_scores)

    def _reweighted(self, patch: torch.Tensor, distance: float, nearest: int) -> float:
        """PatchCore eq. 7 on s* = `distance` of p* = `patch` to m*; as released m* itself is left out."""
        around = self._search.around(nearest, REWEIGHT_NEIGHBORS)
        if self.rule.leave_out_self:
            around = around[1:]
        radii = torch.linalg.vector_norm(self.rows[around].double() - patch, dim=1).cpu().numpy()
        scale = self.rule.distance_scale
        return image_score(distance / scale, radii / scale, len(patch), self.rule.reweight_eps)


def image_score(distance: float, radii: np.ndarray, dim: int, eps: float) -> float:
    """w * s* with w = 1 - exp(s* / sqrt D) / (sum of exp(r / sqrt D) + eps), without overflow."""
    root = math.sqrt(dim)
    largest = max(distance, float(radii.max())) / root
    denominator = np.exp(radii / root - largest).sum() + eps * math.exp(-largest)
    return float((1 - math.exp(distance / root - largest) / denominator) * distance)


def fit_memory_bank(
    patches: TrainingPatches,
    standardization: Standardization,
    settings: Settings,
    *,
    coreset_rows: int,
    zero_row: bool,
    random_state: int | np.random.RandomState,
) -> MemoryBank:
    """Standardise training patches and reduce them to a bank.

    The coreset has `f_coreset` times `coreset_rows` rows. With `zero_row` the rows that hold an exact 0 are dropped
    after it and one row of zeros is appended; with `--rm_zero_for_project` such rows are no candidates either.
    """
    candidates = patches.row_of_patch
    if settings.rm_zero_for_project:
        candidates = candidates[_without_zeros(patches.rows, standardization)[candidates]]
        coreset_rows = len(candidates)
    if settings.f_coreset < 1:
        count = min(int(settings.f_coreset * coreset_rows), len(candidates))
        projected = sparse_projection(
            patches.rows,
            standardization,
            n_samples=len(candidates),
            eps=settings.coreset_eps,
            random_state=random_state,
        )
        chosen = greedy_coreset(projected, count, index=candidates, dtype=settings.quirks.coreset_dtype)
        candidates = candidates[chosen]
    rows = standardization.apply(patches.rows[candidates])
    if zero_row or settings.rm_zero_for_project:
        rows = torch.cat([rows[(rows != 0).all(dim=1)], rows.new_zeros(1, rows.shape[1])])
    return MemoryBank(rows, standardization, ScoreRule.of(settings))


def _without_zeros(rows: torch.Tensor, standardization: Standardization) -> torch.Tensor:
    """Which rows hold no exact 0 once standardised; (R, D) -> (R,) bool."""
    return torch.cat([(standardization.apply(part) != 0).all(dim=1) for part in rows.split(4096)])
