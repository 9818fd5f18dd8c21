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
from utils.structures import Modality, Patches, Score

NEIGHBOURS = 3  # bank rows around m*, itself among them, in the weight of the image score (PatchCore's b)


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
        spec, quirks = settings.method, settings.quirks
        return cls(
            reweight_eps=spec.reweight_eps,
            distance_scale=spec.distance_scale,
            leave_out_self=quirks.reweight_neighbours == "without_self",
            blur=quirks.blur,
            image_size=settings.img_size,
        )


class MemoryBank:
    """Rows (n, D) of standardised normal patches. Scores are higher = more anomalous."""

    def __init__(self, rows: torch.Tensor, rule: ScoreRule) -> None:
        if len(rows) < NEIGHBOURS:
            raise ValueError(
                f"a memory bank of {len(rows)} rows can't weigh its scores, which takes {NEIGHBOURS}; "
                "use more training samples or a larger --f_coreset"
            )
        self.rows = rows
        self.rule = rule
        self._search = NearestRows(rows)

    @torch.inference_mode()
    def score(self, patches: Patches) -> Score:
        """Score one sample, whose patches are standardised as the bank's rows are."""
        distance, nearest = self._search.nearest(patches.rows)
        worst = int(distance.argmax())  # p*, the row of the patch of largest distance
        image_score = self._reweighted(patches.rows[worst], float(distance[worst]), int(nearest[worst]))
        pixel_scores = anomaly_map(
            distance[patches.index], patches.side, self.rule.image_size, self.rule.blur
        )
        return Score(image_score, pixel_scores)

    def _reweighted(self, patch: torch.Tensor, distance: float, nearest: int) -> float:
        """PatchCore eq. 7 on s* = `distance` of p* = `patch` to m*; as released m* itself is left out."""
        around = self._around(nearest)  # (3,) or (2,)
        radii = torch.linalg.vector_norm(self.rows[around].double() - patch, dim=1).cpu().numpy()
        scale = self.rule.distance_scale
        return image_score(distance / scale, radii / scale, len(patch), self.rule.reweight_eps)

    def _around(self, center: int) -> torch.Tensor:
        """The bank's rows nearest to row `center`, itself first or left out."""
        around = self._search.around(center, NEIGHBOURS)
        return around[1:] if self.rule.leave_out_self else around


def image_score(distance: float, radii: np.ndarray, dim: int, eps: float) -> float:
    """w * s* with w = 1 - exp(s* / sqrt D) / (sum of exp(r / sqrt D) + eps), without overflow."""
    root = math.sqrt(dim)
    largest = max(distance, float(radii.max())) / root
    denominator = np.exp(radii / root - largest).sum() + eps * math.exp(-largest)
    return float((1 - math.exp(distance / root - largest) / denominator) * distance)


def fit_memory_bank(
    patches: TrainingPatches,
    settings: Settings,
    *,
    size_of: int | None,
    zero_row: bool,
    random_state: int | np.random.RandomState,
) -> MemoryBank:
    """Reduce standardised training patches to a bank.

    The coreset has `f_coreset` times `size_of` rows (None: times all rows that are candidates). With `zero_row`
    the rows that hold an exact 0 are dropped after it and one row of zeros is appended.
    """
    index = patches.index
    if settings.rm_zero_for_project:
        index = index[_without_zeros(patches.rows)[index]]
    if settings.f_coreset < 1:
        chosen = _coreset(patches.rows, index, settings, size_of, random_state)
        index = index[chosen]
    rows = patches.rows[index]
    if zero_row or settings.rm_zero_for_project:
        rows = torch.cat([rows[_without_zeros(rows)], rows.new_zeros(1, rows.shape[1])])
    return MemoryBank(rows, ScoreRule.of(settings))


def standardizations(
    patches: dict[Modality, TrainingPatches], settings: Settings
) -> dict[Modality, Standardization | None]:
    """The standardisation of each bank, from the patches that feed the banks; None where there is none."""
    rule = settings.method.standardize
    if rule == "none":
        return dict.fromkeys(patches)
    if rule == "own":
        return {name: _checked(p.mean(), p.std(), name) for name, p in patches.items()}
    mean = feeding(patches["xyz"], "xyz", settings).mean()
    return dict.fromkeys(patches, _checked(mean, patches["rgb"].std(), "rgb"))


def feeding(patches: TrainingPatches, name: Modality, settings: Settings) -> TrainingPatches:
    """The training patches that feed bank `name`: with `--asy_memory_bank k` the first k for xyz and fusion."""
    if settings.asy_memory_bank is None or name == "rgb":
        return patches
    return patches.first(settings.asy_memory_bank)


def _coreset(
    rows: torch.Tensor,
    index: torch.Tensor,
    settings: Settings,
    size_of: int | None,
    random_state: int | np.random.RandomState,
) -> torch.Tensor:
    count = min(int(settings.f_coreset * (len(index) if size_of is None else size_of)), len(index))
    projected = sparse_projection(
        rows, n_samples=len(index), eps=settings.coreset_eps, random_state=random_state
    )
    return greedy_coreset(projected, count, index=index, dtype=settings.quirks.coreset_dtype)


def _without_zeros(rows: torch.Tensor) -> torch.Tensor:
    return (rows != 0).all(dim=1)


def _checked(mean: float, std: float, name: str) -> Standardization:
    if std == 0:
        raise ValueError(f"all {name} features of the training samples are equal: nothing to standardise by")
    return Standardization(mean, std)
