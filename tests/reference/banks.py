"""The memory banks, the scores and the decision of the six methods as the released code computes them.

Everything is dense and done step by step: scikit-learn's projection and SVMs, one pass over all rows per choice of
the coreset, all distances at once. None of the code under test is used. On the features of the released code's own
golden arrays (banks.npz) it gives their coresets, sizes, means, SVM coefficients, scores and maps, every bit of them.

    python -m tests.reference.banks

writes goldens/small_banks.npz, what this gives for `small_samples`, whose features follow from the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from sklearn.linear_model import SGDOneClassSVM
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor

from tests.reference.coreset import plain_greedy_coreset, torch_norm
from tests.reference.formula import formula_array

GOLDENS = Path(__file__).parent / "goldens"
Sample = dict[str, Tensor]  # dense patches (P, D) of "rgb", "xyz" and "fusion"

SMALL_SIDE = 64  # pixels; 8 x 8 rgb and 16 x 16 xyz patches
NUM_TRAIN = 4  # of the small samples; one more is scored
RGB_DIM, XYZ_DIM = 160, 192  # more than the projection keeps
FUSED_DIMS = 100  # of each modality
EMPTY_SHARE = 0.3  # of the xyz patches


@dataclass(frozen=True)
class Case:
    """One run: a method of the release with the flags that change its banks."""

    method: str
    random_state: int | None = 7
    asy_memory_bank: int | None = None
    rm_zero_for_project: bool = False


CASES = {
    **{
        method: Case(method)
        for method in (
            "DINO",
            "Point_MAE",
            "Fusion",
            "DINO+Point_MAE",
            "DINO+Point_MAE+add",
            "DINO+Point_MAE+Fusion",
        )
    },
    "no_random_state": Case("DINO+Point_MAE+Fusion", random_state=None),
    "asy_memory_bank": Case("DINO+Point_MAE+Fusion", asy_memory_bank=2),
    "rm_zero_for_project": Case("Point_MAE", rm_zero_for_project=True),
}
SOURCES = {
    "DINO": ["rgb"],
    "Point_MAE": ["xyz"],
    "Fusion": ["fusion"],
    "DINO+Point_MAE": ["xyz", "rgb"],
    "DINO+Point_MAE+add": ["xyz", "rgb"],
    "DINO+Point_MAE+Fusion": ["xyz", "rgb", "fusion"],
}
LAMBDAS = {"xyz": 1.0, "rgb": 0.1, "fusion": 1.0}
F_CORESET, JL_EPS = 0.1, 0.9
BLUR_RADIUS = 4


@dataclass
class PlainBank:
    """Rows (n, D); chosen (m,): which of the training patches the coreset took, in the order of its choices."""

    rows: Tensor
    mean: float | Tensor
    std: float | Tensor
    chosen: Tensor


@dataclass
class PlainResult:
    """What a fit on training samples gives, and the score of one sample more; coefficients only where SVMs decide."""

    banks: dict[str, PlainBank]
    score: float
    map: np.ndarray
    image_coef: np.ndarray | None = None
    pixel_coef: np.ndarray | None = None


def small_samples() -> list[Sample]:
    """NUM_TRAIN + 1 made-up samples: one pattern, and noise whose strength differs from patch to patch."""
    samples = []
    for number in range(NUM_TRAIN + 1):
        rgb = _features("rgb", number, (SMALL_SIDE // 8) ** 2, RGB_DIM)
        xyz = _features("xyz", number, (SMALL_SIDE // 4) ** 2, XYZ_DIM)
        xyz[_ranks(f"small_banks.empty.{number}", len(xyz)) < EMPTY_SHARE] = 0
        samples.append({"rgb": rgb, "xyz": xyz, "fusion": fused(xyz, rgb, FUSED_DIMS)})
    return samples


def fused(xyz: Tensor, rgb: Tensor, dims: int) -> Tensor:
    """The first `dims` values of each xyz patch beside those of the rgb patch above it."""
    side = int(len(rgb) ** 0.5)
    upsampled = rgb.reshape(side, side, -1).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten(0, 1)
    return torch.cat([xyz[:, :dims], upsampled[:, :dims]], dim=1)


def plain_run(case: Case, training: list[Sample], sample: Sample, image_size: int) -> PlainResult:
    """Fit on the training samples and score `sample`."""
    banks = plain_banks(case, training)
    name, sources = case.method, SOURCES[case.method]

    def scores_of(patches: Sample) -> list[tuple[Tensor, Tensor]]:
        return [plain_bank_score(name, banks[source], patches[source], image_size) for source in sources]

    if name in ("DINO", "Point_MAE", "Fusion", "DINO+Point_MAE+add"):
        found = scores_of(sample)
        return PlainResult(
            banks, float(sum(s for s, _ in found)), np.sum([m.numpy() for _, m in found], axis=0)
        )
    rows = [_columns(scores_of(patches), sources) for patches in training]
    image_svm, pixel_svm = (
        SGDOneClassSVM(random_state=42, nu=0.5, max_iter=1000).fit(torch.cat(part).numpy().astype(np.float64))
        for part in zip(*rows, strict=True)
    )
    image, pixels = (part.numpy().astype(np.float64) for part in _columns(scores_of(sample), sources))
    anomaly_map = pixel_svm.score_samples(pixels).reshape(image_size, image_size)
    score = float(image_svm.score_samples(image)[0])
    return PlainResult(banks, score, anomaly_map, image_svm.coef_.ravel(), pixel_svm.coef_.ravel())


def plain_banks(case: Case, training: list[Sample]) -> dict[str, PlainBank]:
    """The banks in column order."""
    sources = SOURCES[case.method]
    patches = {}
    for source in sources:
        limited = case.asy_memory_bank is not None and source != "rgb"
        used = training[: case.asy_memory_bank] if limited else training
        patches[source] = torch.cat([sample[source] for sample in used])
    random_state = np.random.RandomState(0) if case.random_state is None else case.random_state
    banks: dict[str, PlainBank] = {}
    for source in sources:
        mean, std = _mean_std(case.method, patches)
        rows = (patches[source] - mean) / std
        keep = torch.arange(len(rows))
        if case.rm_zero_for_project:
            keep = keep[(rows != 0).all(dim=1)]
        # counted, as released, by the rows that are in the xyz bank, which for the others is a coreset already
        total = len(keep) if not banks else len(banks["xyz"].chosen)
        chosen = keep[_coreset(rows[keep], int(F_CORESET * total), random_state)]
        rows = rows[chosen]
        if case.rm_zero_for_project or (len(sources) == 3 and source == "xyz"):
            rows = torch.cat([rows[(rows != 0).all(dim=1)], torch.zeros(1, rows.shape[1])])
        banks[source] = PlainBank(rows, mean, std, chosen)
    return banks


def plain_bank_score(method: str, bank: PlainBank, patches: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Image score () and map (S, S) of one bank."""
    patches = (patches - bank.mean) / bank.std
    distance, nearest = torch.cdist(patches, bank.rows).min(dim=1)
    worst = distance.argmax()
    around = torch.cdist(bank.rows[nearest[worst]][None], bank.rows)[0].topk(3, largest=False).indices[1:]
    radii = torch.linalg.norm(patches[worst] - bank.rows[around], dim=1)
    star = distance[worst]
    if method == "DINO+Point_MAE":
        star, radii = star / 1000, radii / 1000
    eps = 1e-5 if method in ("DINO", "Point_MAE") else 0.0
    root = patches.shape[1] ** 0.5
    weight = 1 - torch.exp(star / root) / (torch.exp(radii / root).sum() + eps)
    side = int(len(patches) ** 0.5)
    grid = distance.reshape(1, 1, side, side)
    smooth = F.interpolate(grid, size=(image_size, image_size), mode="bilinear", align_corners=False)
    return weight * star, _blurred(smooth[0, 0])


def small_goldens() -> dict[str, np.ndarray]:
    """The arrays of goldens/small_banks.npz: per case what PlainResult holds."""
    samples = small_samples()
    arrays: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        result = plain_run(case, samples[:NUM_TRAIN], samples[NUM_TRAIN], SMALL_SIDE)
        arrays[f"{name}.score"] = np.array(result.score)
        arrays[f"{name}.map"] = result.map.astype(np.float32)
        for source, bank in result.banks.items():
            arrays[f"{name}.{source}.chosen"] = bank.chosen.numpy().astype(np.int16)
            arrays[f"{name}.{source}.bank_rows"] = np.array(len(bank.rows))
            arrays[f"{name}.{source}.mean_std"] = np.array([float(bank.mean), float(bank.std)])
        if result.image_coef is not None and result.pixel_coef is not None:
            arrays[f"{name}.image_coef"], arrays[f"{name}.pixel_coef"] = result.image_coef, result.pixel_coef
    return arrays


def _mean_std(method: str, patches: Sample) -> tuple[float | Tensor, float | Tensor]:
    """By what a method standardises all its banks."""
    if method == "DINO":
        return patches["rgb"].mean(), patches["rgb"].std()
    if method in ("Point_MAE", "Fusion"):
        return 0.0, 1.0
    return patches["xyz"].mean(), patches["rgb"].std()


def _coreset(rows: Tensor, n: int, random_state: int | np.random.RandomState) -> Tensor:
    try:
        projected = SparseRandomProjection(eps=JL_EPS, random_state=random_state).fit_transform(rows.numpy())
    except ValueError:  # it would need more dims than there are
        projected = rows.numpy()
    return plain_greedy_coreset(torch.from_numpy(projected), n, dtype="float16", norm=torch_norm)


def _columns(scores: list[tuple[Tensor, Tensor]], sources: list[str]) -> tuple[Tensor, Tensor]:
    """What the SVMs see of one sample: image scores (1, K) and pixels (S * S, K), times the lambdas."""
    image = torch.stack([LAMBDAS[source] * s for source, (s, _) in zip(sources, scores, strict=True)])
    pixels = [LAMBDAS[source] * m.flatten() for source, (_, m) in zip(sources, scores, strict=True)]
    return image[None], torch.stack(pixels, dim=1)


def _blurred(image: Tensor) -> Tensor:
    """PIL's blur of 8-bit levels relative to the maximum."""
    peak = image.max()
    levels = Image.fromarray((image / peak * 255).numpy().astype(np.uint8))
    blurred = np.asarray(levels.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)), dtype=np.float32)
    return torch.from_numpy(blurred) / 255 * peak


def _features(source: str, number: int, count: int, dim: int) -> Tensor:
    """(count, dim) float32 numbers that are float16 ones, whatever rounds on the way."""
    pattern = _normal(f"small_banks.{source}.pattern", (count, dim))
    strength = np.exp(0.5 * _normal(f"small_banks.{source}.strength.{number}", (count, 1)))
    noise = _normal(f"small_banks.{source}.noise.{number}", (count, dim))
    return torch.from_numpy((pattern + strength * noise + 0.3).astype(np.float16).astype(np.float32))


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The formula's standard normal numbers."""
    return formula_array(name, shape).astype(np.float64) / 0.02


def _ranks(name: str, count: int) -> Tensor:
    """Ranks (count,) of the formula's numbers, as shares."""
    return torch.from_numpy(formula_array(name, (count,)).argsort().argsort() / count)


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in one order
    np.savez_compressed(GOLDENS / "small_banks.npz", **small_goldens())  # type: ignore[arg-type]
