"""Detectors fitted to made-up features: what the settings do to banks and decision."""

import numpy as np
import pytest
import torch

from feature_extractors.detector import Detector, fit_banks, fit_decision
from feature_extractors.memory_bank.bank import fit_memory_bank
from feature_extractors.memory_bank.training_patches import NO_STANDARDIZATION, TrainingPatches
from feature_extractors.methods import METHODS
from feature_extractors.quirks import Quirks
from feature_extractors.settings import Settings
from models.uff.pairing import paired_rgb
from utils.structures import Patches


def _fit(samples, method, **changes):
    settings = Settings(method_name=method, **changes)
    training = {
        name: TrainingPatches.collect([sample[name] for sample in samples])
        for name in settings.method.sources
    }
    banks = fit_banks(training, settings)
    return Detector(banks, fit_decision(banks, training, settings))


def _random_samples(count, *, dims=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(56 * 56).clamp(max=1000)  # two thirds of the patches are empty
    samples = []
    for _ in range(count):
        xyz = torch.cat([torch.randn(1000, dims, generator=generator), torch.zeros(1, dims)])
        rgb = torch.randn(784, dims, generator=generator)
        fusion = torch.randn(3136, 2 * dims, generator=generator)
        samples.append(
            {
                "xyz": Patches(xyz, index, 56),
                "rgb": Patches(rgb, torch.arange(784), 28),
                "fusion": Patches(fusion, torch.arange(3136), 56),
            }
        )
    return samples


@pytest.mark.parametrize("method", [name for name in METHODS if name != "FPFH"])
def test_a_sample_far_from_the_bank_scores_higher(method):
    samples = _random_samples(4)
    odd = {name: Patches(p.rows.clone(), p.row_of_patch, p.side) for name, p in samples[3].items()}
    for patches in odd.values():
        patches.rows[100] += 20
    detector = _fit(samples[:3], method)
    assert detector.score(odd).image > detector.score(samples[3]).image


def test_equal_fits_give_equal_scores():
    samples = _random_samples(3)
    first, second = (_fit(samples, "DINO+Point_MAE+Fusion").score(samples[0]) for _ in range(2))
    assert first.image == second.image
    np.testing.assert_array_equal(first.map, second.map)


def test_each_coreset_size_may_count_its_own_rows():
    sizes = {}
    for rule in ("of_first_bank", "each"):
        detector = _fit(_random_samples(2), "DINO+Point_MAE", quirks=Quirks(coreset_size=rule))
        sizes[rule] = [len(bank.rows) for bank in detector.banks.values()]
    assert sizes == {"of_first_bank": [627, 62], "each": [627, 156]}


def test_three_banks_append_one_zero_row_to_xyz():
    keep = _fit(_random_samples(2), "DINO+Point_MAE+Fusion", quirks=Quirks(zero_rows="keep"))
    released = _fit(_random_samples(2), "DINO+Point_MAE+Fusion")
    assert len(released.banks["xyz"].rows) == len(keep.banks["xyz"].rows) + 1
    assert not released.banks["xyz"].rows[-1].any()


@pytest.mark.parametrize("f_coreset", [0.5, 1.0])
def test_a_zero_row_takes_the_place_of_rows_that_hold_an_exact_zero(f_coreset):
    rows = 1 + torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    rows[::3, 2] = 0
    training = TrainingPatches.collect([Patches(rows, torch.arange(64).clamp(max=59), 8)])
    settings = Settings(f_coreset=f_coreset)
    bank = fit_memory_bank(
        training, NO_STANDARDIZATION, settings, coreset_rows=60, zero_row=True, random_state=0
    )
    assert (bank.rows[:-1] != 0).all()
    assert not bank.rows[-1].any()
    assert f_coreset < 1 or len(bank.rows) == 64 - 20 + 1


def test_rm_zero_for_project_drops_empty_patches_before_the_coreset():
    detector = _fit(_random_samples(2), "Point_MAE", rm_zero_for_project=True)
    rows = detector.banks["xyz"].rows
    assert len(rows) == 200 + 1  # 10 % of the 2 * 1000 patches that are not empty, and the zero row
    assert (rows[:-1] != 0).all()


def test_asymmetric_banks_take_xyz_and_fusion_from_the_first_samples():
    detector = _fit(_random_samples(4), "DINO+Point_MAE+Fusion", asy_memory_bank=2, f_coreset=1.0)
    sizes = {name: len(bank.rows) for name, bank in detector.banks.items()}
    assert sizes == {"xyz": 2 * 3136 + 1, "rgb": 4 * 784, "fusion": 2 * 3136}


def test_a_full_bank_keeps_every_row():
    detector = _fit(_random_samples(2), "DINO", f_coreset=1.0)
    assert len(detector.banks["rgb"].rows) == 2 * 784


def test_lambdas_scale_the_columns_of_the_decision():
    samples = _random_samples(3)
    decision = _fit(samples, "DINO+Point_MAE", xyz_s_lambda=0.0, xyz_smap_lambda=0.0).decision
    assert decision.image.coef[0] == 0
    assert decision.pixel.coef[0] == 0


def test_constant_features_are_refused():
    constant = [{"rgb": Patches(torch.ones(784, 4), torch.arange(784), 28)}] * 2
    with pytest.raises(ValueError, match="all rgb features of the training samples are equal"):
        _fit(constant, "DINO")


def test_upsampling_puts_each_fine_patch_beside_the_coarse_one_above_it(goldens):
    pairing = np.load(goldens / "pairing.npz")
    np.testing.assert_array_equal(paired_rgb("colocated", 28, 56).numpy(), pairing["rgb56"])


def test_banks_that_hold_every_training_row_leave_the_svms_nothing_to_learn():
    with pytest.raises(ValueError, match=r"at distance 0 from the banks.*smaller --f_coreset"):
        _fit(_random_samples(2), "DINO+Point_MAE", f_coreset=1.0)
