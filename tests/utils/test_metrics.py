"""The metrics: the published three equal the released code's, all of them equal their plain twins."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tests.reference.metrics import plain_metrics
from utils.metrics import (
    METRICS,
    Curve,
    Predictions,
    area_up_to,
    average_precision,
    f1_max,
    measure,
    pro_curve,
    rank,
    roc_auc,
)

PIXEL_KEYS = {metric.key for metric in METRICS if not metric.key.startswith("image")}


@pytest.fixture(scope="module")
def case(goldens):
    return np.load(goldens / "metrics.npz")


def predictions(masks: np.ndarray, maps: np.ndarray) -> Predictions:
    """Samples whose label says whether their mask shows a defect, scored by their map's maximum."""
    masks = masks.astype(bool)
    return Predictions(masks.any(axis=(1, 2)).astype(int), maps.max(axis=(1, 2), initial=-1), masks, maps)


def random_case(decimals: int, seed: int = 0) -> Predictions:
    """Noise that is larger in defects of one and of several regions, one of them a single pixel."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((6, 40, 40), bool)
    masks[:4, 5:12, 20:33] = masks[1:3, 30:34, 5:9] = masks[2, 0, 0] = True
    maps = (rng.standard_normal(masks.shape) + masks).round(decimals).astype(np.float32)
    return predictions(masks, maps)


CASES = {
    "no ties": random_case(7),
    "mass ties": random_case(0),
    "some ties": random_case(1, seed=1),
    "constant": predictions(
        np.eye(8)[None].repeat(3, 0) * [[[1]], [[0]], [[1]]], np.ones((3, 8, 8), np.float32)
    ),
    "two values": predictions(np.tri(8)[None], np.tri(8, k=-3, dtype=np.float32)[None]),
    "signed zeros": predictions(
        np.tri(8)[None], np.float32(-1.0) * np.tri(8, k=3, dtype=np.float32)[None] * 0
    ),
    "perfect": predictions(np.tri(8)[None], np.tri(8, dtype=np.float32)[None]),
    "worst": predictions(np.tri(8)[None], -np.tri(8, dtype=np.float32)[None]),
    "one normal pixel": predictions(np.arange(64).reshape(1, 8, 8) != 9, np.arange(64.0).reshape(1, 8, 8)),
    "one defect pixel": predictions(np.arange(64).reshape(1, 8, 8) == 9, np.arange(64.0).reshape(1, 8, 8)),
    "only defects": predictions(np.ones((2, 4, 4)), np.zeros((2, 4, 4), np.float32)),
    "no defect": predictions(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), np.float32)),
    "no sample": predictions(np.zeros((0, 4, 4)), np.zeros((0, 4, 4), np.float32)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_metric_equals_its_plain_twin(name):
    given = CASES[name]
    plain = plain_metrics(given.labels, given.scores, given.masks, given.maps)
    found = measure(given)
    assert list(found) == list(plain)
    for key, value in plain.items():
        assert found[key] == (None if value is None else pytest.approx(value, abs=1e-12)), key


def test_only_the_order_of_scores_counts_infinite_ones_included():
    given = random_case(1)
    infinite = np.where(given.maps > 2, np.inf, np.where(given.maps < -1, -np.inf, given.maps))
    clipped = np.where(given.maps > 2, 5, np.where(given.maps < -1, -5, given.maps))
    assert measure(predictions(given.masks, infinite)) == measure(predictions(given.masks, clipped))


def test_each_metric_has_a_key_and_a_title_of_its_own():
    assert (
        len({metric.key for metric in METRICS}) == len({metric.title for metric in METRICS}) == len(METRICS)
    )


def test_au_pro_and_pixel_auroc_equal_the_released_code(case):
    found = measure(predictions(case["masks"], case["maps"]))
    assert found["au_pro"] == pytest.approx(float(case["au_pro"]), abs=1e-15)
    assert found["pixel_rocauc"] == pytest.approx(float(case["pixel_rocauc"]), abs=1e-15)


def test_pro_curve_ends_at_one_one_and_equals_the_released_code(case):
    given = predictions(case["masks"], case["maps"])
    rates, overlaps = pro_curve(given.normal_sorted, given.regions)
    assert (rates[-1], overlaps[-1]) == (1.0, 1.0)
    np.testing.assert_allclose(rates, case["fpr"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(overlaps, case["pro"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_metrics_of_a_ranking_equal_those_of_scikit_learn(decimals):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.standard_normal(200).round(decimals)
    ranking = rank(np.sort(scores[labels == 1]), np.sort(scores[labels == 0]))
    assert roc_auc(ranking) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)
    assert average_precision(ranking) == pytest.approx(average_precision_score(labels, scores), abs=1e-14)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert f1_max(ranking) == pytest.approx(f1.max(), abs=1e-14)


def test_random_scores_give_half_the_limit_as_au_pro():
    rng = np.random.default_rng(0)
    masks = np.zeros((20, 64, 64), bool)
    masks[:10, 10:40, 10:40] = True
    found = measure(predictions(masks, rng.random(masks.shape)))
    assert found["au_pro"] == pytest.approx(0.15, abs=0.01)
    assert found["au_pro_exact_30"] == pytest.approx(0.15, abs=0.01)
    assert found["au_pro_exact_01"] == pytest.approx(0.005, abs=0.001)


def test_perfect_maps_give_one():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    found = measure(predictions(masks, masks + np.linspace(0, 0.5, 128).reshape(2, 8, 8)))
    assert list(found.values()) == pytest.approx([1.0] * len(METRICS))
    assert found["pixel_rocauc"] == 1.0


def test_regions_touching_at_a_corner_are_one():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 1, 1] = mask[0, 2, 2] = True
    (region,) = predictions(mask, np.arange(64, dtype=float).reshape(1, 8, 8)).regions
    assert region.tolist() == [9, 18]


@pytest.mark.parametrize("label", [0, 1])
def test_one_kind_of_label_makes_a_metric_unavailable_not_a_crash(label):
    masks = np.full((2, 4, 4), bool(label))
    assert set(measure(predictions(masks, np.zeros(masks.shape))).values()) == {None}


def test_without_pixel_ground_truth_only_image_metrics_are_available():
    found = measure(dataclasses.replace(random_case(7), masks=None))
    assert {key for key, value in found.items() if value is None} == PIXEL_KEYS


def test_area_interpolates_at_the_limit():
    assert area_up_to(Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0])), 0.3) == pytest.approx(0.15)


@pytest.mark.parametrize("pixel", [(0, 0), (0, 1)], ids=["in a defect", "beside it"])
def test_maps_with_nan_are_refused_when_pixel_metrics_are_asked_for(pixel):
    maps = np.zeros((1, 4, 4))
    maps[(0, *pixel)] = np.nan
    given = Predictions(np.array([1]), np.array([1.0]), np.eye(4, dtype=bool)[None], maps)
    for metric in METRICS:
        if metric.key in PIXEL_KEYS:
            with pytest.raises(ValueError, match="anomaly maps: NaN has no rank"):
                metric.function(dataclasses.replace(given))
    assert measure(dataclasses.replace(given, masks=None))["pixel_ap"] is None


def test_image_scores_with_nan_are_refused():
    with pytest.raises(ValueError, match="image scores: NaN has no rank"):
        measure(Predictions(np.array([0, 1]), np.array([np.nan, 1]), None, np.zeros((2, 4, 4))))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros(5)},
        {"scores": np.zeros((6, 1))},
        {"maps": np.zeros((5, 40, 40))},
        {"masks": np.zeros((6, 40, 40), np.uint8)},
        {"masks": np.zeros((6, 20, 20), bool)},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change):
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(random_case(7), **change)
