import math

import numpy as np
import pytest
import torch

from feature_extractors.memory_bank.anomaly_map import anomaly_map
from feature_extractors.memory_bank.bank import MemoryBank, ScoreRule, image_score
from feature_extractors.memory_bank.training_patches import (
    NO_STANDARDIZATION,
    Standardization,
    TrainingPatches,
)
from utils.structures import Patches

RULE = ScoreRule(reweight_eps=0.0, distance_scale=1.0, leave_out_self=True, blur="pil_8bit", image_size=224)


def test_blur_equals_the_released_code(goldens):
    golden = np.load(goldens / "blur.npz")
    raw = torch.from_numpy(golden["in"]).flatten()
    np.testing.assert_allclose(anomaly_map(raw, 224, 224, "pil_8bit"), golden["out"][0], rtol=1e-6)


@pytest.mark.parametrize("blur", ["pil_8bit", "gaussian"])
def test_an_all_zero_map_stays_zero(blur):
    assert not anomaly_map(torch.zeros(784), 28, 224, blur).any()


def test_float_blur_keeps_what_8_bits_lose():
    distance = torch.zeros(784)
    distance[0], distance[783] = 1000.0, 1.0
    assert anomaly_map(distance, 28, 224, "gaussian")[-1, -1] > 0
    assert anomaly_map(distance, 28, 224, "pil_8bit")[-1, -1] == 0


def _patchcore_score(rows, patches, eps, scale, *, leave_out_self):
    distances = torch.cdist(patches, rows, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, where = distances.min(dim=1)
    worst = nearest.argmax()
    around = (rows - rows[where[worst]]).norm(dim=1).argsort()[:3]
    around = around[1:] if leave_out_self else around
    radii = (rows[around] - patches[worst]).norm(dim=1) / scale
    star, root = float(nearest[worst]) / scale, math.sqrt(rows.shape[1])
    return (1 - math.exp(star / root) / (sum(math.exp(r / root) for r in radii.tolist()) + eps)) * star


@pytest.mark.parametrize("leave_out_self", [True, False])
@pytest.mark.parametrize(("eps", "scale"), [(0.0, 1.0), (1e-5, 1.0), (0.0, 1000.0)])
def test_image_score_is_patchcores_equation_7(leave_out_self, eps, scale):
    generator = torch.Generator().manual_seed(0)
    rows, patches = (torch.randn(n, 16, generator=generator) for n in (50, 784))
    rule = ScoreRule(eps, scale, leave_out_self, "pil_8bit", 224)
    score = MemoryBank(rows, NO_STANDARDIZATION, rule).score(Patches(patches, torch.arange(784), 28))
    expected = _patchcore_score(rows, patches, eps, scale, leave_out_self=leave_out_self)
    assert score.image == pytest.approx(expected, rel=1e-5)


def test_image_score_does_not_overflow_where_exp_would():
    assert image_score(1e6, np.array([2e6, 3e6]), 4, 1e-5) == pytest.approx(1e6)


def test_equal_patches_stored_once_or_each_give_the_same_score():
    generator = torch.Generator().manual_seed(0)
    rows, bank = (
        torch.randn(10, 8, generator=generator),
        MemoryBank(torch.randn(9, 8, generator=generator), NO_STANDARDIZATION, RULE),
    )
    index = torch.randint(10, (784,), generator=generator)
    once, each = bank.score(Patches(rows, index, 28)), bank.score(Patches(rows[index], torch.arange(784), 28))
    assert once.image == each.image
    np.testing.assert_array_equal(once.map, each.map)


def test_a_patch_of_the_bank_has_distance_zero():
    rows = 30 * torch.randn(784, 32, generator=torch.Generator().manual_seed(0))
    assert (
        not MemoryBank(rows, NO_STANDARDIZATION, RULE).score(Patches(rows, torch.arange(784), 28)).map.any()
    )


def test_a_bank_too_small_to_weigh_scores_is_refused():
    with pytest.raises(ValueError, match=r"2 rows .* larger --f_coreset"):
        MemoryBank(torch.zeros(2, 4), NO_STANDARDIZATION, RULE)


def _training():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(5, (16,), generator=generator)
    return [Patches(torch.randn(5, 3, generator=generator) + i, index, 4) for i in range(3)]


def test_mean_and_std_count_a_row_as_often_as_it_stands_in_the_map():
    samples = _training()
    dense = torch.cat([sample.dense() for sample in samples])
    training = TrainingPatches.collect(samples)
    assert training.mean() == pytest.approx(float(dense.mean()), rel=1e-6)
    assert training.std() == pytest.approx(float(dense.std()), rel=1e-6)


def test_a_bank_standardises_what_it_scores_and_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    rows, patches = (torch.randn(n, 16, generator=generator) for n in (50, 784))
    by, before = Standardization(mean=1.0, std=2.0), patches.clone()
    found = MemoryBank(rows, by, RULE).score(Patches(patches, torch.arange(784), 28))
    standardized = Patches((patches - 1) / 2, torch.arange(784), 28)
    expected = MemoryBank(rows, NO_STANDARDIZATION, RULE).score(standardized)
    assert found.image == expected.image
    np.testing.assert_array_equal(found.map, expected.map)
    assert torch.equal(patches, before)


def test_the_first_samples_share_memory_with_all():
    training = TrainingPatches.collect(_training())
    first = training.first(2)
    assert len(first) == 2
    assert first.rows.data_ptr() == training.rows.data_ptr()
    for before, after in zip(_training(), first, strict=False):
        assert torch.equal(before.dense(), after.dense())
