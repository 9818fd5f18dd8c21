"""The metrics step by step: two of them as the released code computes them, the others threshold by threshold.

The twin of utils.metrics: labels and scores (n,), masks and maps (n, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

THRESHOLDS = 100
FPR_LIMIT = 0.3
EXACT_LIMITS = {
    "au_pro_exact_30": 0.3,
    "au_pro_exact_10": 0.1,
    "au_pro_exact_05": 0.05,
    "au_pro_exact_01": 0.01,
}


def plain_metrics(
    labels: np.ndarray, scores: np.ndarray, masks: np.ndarray, maps: np.ndarray
) -> dict[str, float | None]:
    """Every metric by its key; None where only one kind of label, or of pixel, is there."""
    image_kinds, pixel_kinds = len(np.unique(labels)), len(np.unique(masks))
    pixel_rocauc, au_pro = plain_pixel_metrics(masks, maps) if pixel_kinds == 2 else (None, None)
    return {
        "image_rocauc": float(roc_auc_score(labels, scores)) if image_kinds == 2 else None,
        "pixel_rocauc": pixel_rocauc,
        "au_pro": au_pro,
        **plain_exact_au_pros(masks, maps),
        "image_ap": plain_average_precision(labels, scores),
        "image_f1_max": plain_f1_max(labels, scores),
        "pixel_ap": plain_average_precision(masks.ravel(), maps.ravel()),
        "pixel_f1_max": plain_f1_max(masks.ravel(), maps.ravel()),
    }


def plain_pixel_metrics(masks: np.ndarray, maps: np.ndarray) -> tuple[float, float]:
    """Pixel ROC AUC and AU-PRO: all pixels in Python lists, then region by region."""
    truth: list[int] = []
    scores: list[float] = []
    for mask, pixels in zip(masks, maps, strict=True):
        truth.extend(mask.ravel().astype(int))
        scores.extend(pixels.ravel())
    auroc = float(roc_auc_score(np.array(truth), np.array(scores)))
    return auroc, _area(*plain_pro_curve(masks, maps), FPR_LIMIT)


def plain_pro_curve(masks: np.ndarray, maps: np.ndarray) -> tuple[list[float], list[float]]:
    """False positive rates, ascending, and the regions' mean overlap at each of 100 thresholds."""
    normal = []
    regions: list[list[float]] = []
    for mask, pixels in zip(masks, maps, strict=True):
        labels, count = label(mask, structure=np.ones((3, 3)))
        normal.append(pixels[labels == 0])
        regions += [sorted(pixels[labels == number]) for number in range(1, count + 1)]
    ranked = np.sort(np.concatenate(normal))
    passed = [0] * len(regions)  # pixels of each region at or below the threshold
    rates, overlaps = [1.0], [1.0]
    for position in np.linspace(0, len(ranked) - 1, THRESHOLDS, dtype=int):
        for number, region in enumerate(regions):
            while passed[number] < len(region) and region[passed[number]] <= ranked[position]:
                passed[number] += 1
        found = [1 - count / len(region) for count, region in zip(passed, regions, strict=True)]
        rates.append(1 - (position + 1) / len(ranked))
        overlaps.append(sum(found) / len(found))
    return rates[::-1], overlaps[::-1]


def plain_exact_au_pros(masks: np.ndarray, maps: np.ndarray) -> dict[str, float | None]:
    """AU-PRO at each limit: every pixel moves the curve by its share, from the highest score to the lowest."""
    defects = int(masks.sum())
    if defects in (0, masks.size):
        return dict.fromkeys(EXACT_LIMITS)
    shares = np.zeros(maps.shape)
    regions = 0
    for mask, share in zip(masks, shares, strict=True):
        labels, count = label(mask, structure=np.ones((3, 3)))
        regions += count
        for number in range(1, count + 1):
            share[labels == number] = 1 / (labels == number).sum()
    rates, overlaps = [0.0], [0.0]
    for overlap, alarms in _sums_by_score(maps.ravel(), shares.ravel(), ~masks.ravel()):
        rates.append(alarms / (masks.size - defects))
        overlaps.append(overlap / regions)
    return {key: _area(rates, overlaps, limit) for key, limit in EXACT_LIMITS.items()}


def plain_average_precision(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """Precision at every distinct score as threshold, weighted by the share of the positives it adds."""
    truth = truth.astype(bool)
    positives = int(truth.sum())
    if positives in (0, truth.size):
        return None
    average, before = 0.0, 0.0
    for found, alarms in _sums_by_score(scores, truth, ~truth):
        average += (found - before) / positives * found / (found + alarms)
        before = found
    return average


def plain_f1_max(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """The largest F1 over every distinct score as threshold."""
    truth = truth.astype(bool)
    positives = int(truth.sum())
    if positives in (0, truth.size):
        return None
    return max(
        2 * found / (found + alarms + positives) for found, alarms in _sums_by_score(scores, truth, ~truth)
    )


def _sums_by_score(
    scores: np.ndarray, first: np.ndarray, second: np.ndarray
) -> Iterator[tuple[float, float]]:
    """Sums of two arrays over what is not below each distinct score, from the highest on."""
    order = np.argsort(-scores)
    ranked, firsts, seconds = scores[order].tolist(), first[order].tolist(), second[order].tolist()
    first_sum = second_sum = 0
    for place, score in enumerate(ranked):
        first_sum += firsts[place]
        second_sum += seconds[place]
        if place + 1 == len(ranked) or ranked[place + 1] != score:
            yield first_sum, second_sum


def _area(rates: list[float], overlaps: list[float], limit: float) -> float:
    """Area under the curve up to the limit, over the limit: trapezoids, cut linearly."""
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x0 < limit:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit
