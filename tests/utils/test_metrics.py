import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from utils.metrics import area_up_to, pixel_metrics, pro_curve, roc_auc


@pytest.fixture(scope="module")
def case(goldens):
    return np.load(goldens / "metrics.npz")


def test_au_pro_and_pixel_auroc_equal_the_released_code(case):
    found = pixel_metrics(case["masks"], case["maps"])
    assert found.au_pro == pytest.approx(float(case["au_pro"]), abs=1e-15)
    assert found.pixel_rocauc == pytest.approx(float(case["pixel_rocauc"]), abs=1e-15)


def test_pro_curve_starts_at_one_one_and_equals_the_released_code(case):
    defect, maps = case["masks"] != 0, case["maps"]
    rates, overlaps = pro_curve(np.sort(maps[~defect]), defect, maps)
    assert (rates[-1], overlaps[-1]) == (1.0, 1.0)
    np.testing.assert_allclose(rates, case["fpr"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(overlaps, case["pro"], rtol=0, atol=1e-15)


def test_gt_codes_other_than_255_count_as_defects(case):
    coded = case["masks"].astype(np.uint8) * 252
    assert pixel_metrics(coded, case["maps"]) == pixel_metrics(case["masks"], case["maps"])


@pytest.mark.parametrize("decimals", [1, 8])
def test_roc_auc_counts_ties_half_as_scikit_learn_does(decimals):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.standard_normal(200).round(decimals)
    assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


def test_random_scores_give_half_the_limit_as_au_pro():
    rng = np.random.default_rng(0)
    masks = np.zeros((20, 64, 64), bool)
    masks[:10, 10:40, 10:40] = True
    assert pixel_metrics(masks, rng.random(masks.shape)).au_pro == pytest.approx(0.15, abs=0.01)


def test_perfect_maps_give_one():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    found = pixel_metrics(masks, masks + np.linspace(0, 0.5, 128).reshape(2, 8, 8))
    assert found.pixel_rocauc == 1.0
    assert found.au_pro == pytest.approx(1.0)


def test_regions_touching_at_a_corner_are_one():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 1, 1] = mask[0, 2, 2] = True
    maps = np.arange(64, dtype=float).reshape(1, 8, 8)
    _, overlaps = pro_curve(np.sort(maps[~mask]), mask, maps)
    assert set(np.unique(overlaps)) <= {0.0, 0.5, 1.0}
    assert 0.5 in overlaps


@pytest.mark.parametrize("label", [0, 1])
def test_one_kind_of_label_makes_a_metric_unavailable_not_a_crash(label):
    assert roc_auc(np.full(4, label), np.arange(4.0)) is None
    found = pixel_metrics(np.full((2, 4, 4), label), np.zeros((2, 4, 4)))
    assert (found.pixel_rocauc, found.au_pro) == (None, None)


def test_area_interpolates_at_the_limit():
    assert area_up_to(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.3) == pytest.approx(0.15)


def test_maps_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN has no rank"):
        pixel_metrics(np.eye(4)[None], np.full((1, 4, 4), np.nan))
