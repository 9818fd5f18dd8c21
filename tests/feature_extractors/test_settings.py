import dataclasses
import json
import re

import pytest

from feature_extractors.methods import METHODS
from feature_extractors.quirks import PROTOCOLS, Quirks, quirk_values
from feature_extractors.settings import Settings


def test_there_are_the_methods_of_the_release_and_their_banks_are_in_column_order():
    assert {name: spec.sources for name, spec in METHODS.items() if name != "FPFH"} == {
        "DINO": ("rgb",),
        "Point_MAE": ("xyz",),
        "Fusion": ("fusion",),
        "DINO+Point_MAE": ("xyz", "rgb"),
        "DINO+Point_MAE+add": ("xyz", "rgb"),
        "DINO+Point_MAE+Fusion": ("xyz", "rgb", "fusion"),
    }


def test_ours_is_the_first_value_of_every_quirk():
    assert {name: values[0] for name, values in quirk_values().items()} == dataclasses.asdict(Quirks())


def test_each_quirk_changes_something_in_some_preset():
    ours, *others = (dataclasses.asdict(quirks) for quirks in PROTOCOLS.values())
    assert {name for other in others for name in ours if other[name] != ours[name]} == set(quirk_values())


@pytest.mark.parametrize(
    ("method", "eps", "scale"),
    [("DINO", 1e-5, 1.0), ("Point_MAE", 1e-5, 1.0), ("DINO+Point_MAE", 0.0, 1000.0), ("Fusion", 0.0, 1.0)],
)
def test_quirks_act_on_the_methods_row(method, eps, scale):
    released = Settings(method_name=method).method
    assert (released.reweight_eps, released.distance_scale) == (eps, scale)
    published = Settings(method_name=method, quirks=PROTOCOLS["published"]).method
    assert (published.reweight_eps, published.distance_scale) == (0.0, 1.0)
    assert all((bank.standardize, bank.zero_row) == ("own", False) for bank in published.banks)


def test_the_release_uses_one_sample_more_than_max_sample():
    assert Settings(max_sample=5).sample_limit == 5
    assert Settings(max_sample=5, quirks=PROTOCOLS["released"]).sample_limit == 6


def test_unknown_quirks_and_values_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"--quirk blurr: no such quirk; there are .*blur"):
        Quirks().replace({"blurr": "gaussian"})
    with pytest.raises(ValueError, match="--quirk blur=box: must be one of pil_8bit, gaussian"):
        Quirks().replace({"blur": "box"})


NONSENSE = {
    "--method_name PatchCore: choose one of DINO": {"method_name": "PatchCore"},
    "--rgb_backbone_name resnet: choose one of": {"rgb_backbone_name": "resnet"},
    "FPFH has no other backbone than FPFH; drop --xyz_backbone_name Point_MAE": {
        "method_name": "FPFH",
        "xyz_backbone_name": "Point_MAE",
    },
    "--img_size 223 is no multiple of 8": {"img_size": 223},
    "--num_group 0 must be at least 1": {"num_group": 0},
    "--f_coreset 5 must be a share": {"f_coreset": 5},
    "--f_coreset nan must be a share": {"f_coreset": float("nan")},
    "--xyz_s_lambda inf must be a finite number": {"xyz_s_lambda": float("inf")},
    "--rm_zero_for_project works on a single xyz bank": {"rm_zero_for_project": True},
    "--asy_memory_bank limits no bank of --method_name DINO;": {"method_name": "DINO", "asy_memory_bank": 3},
}


@pytest.mark.parametrize("message", NONSENSE)
def test_settings_that_make_no_sense_can_not_be_constructed(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(**NONSENSE[message])


def test_settings_come_back_from_plain_data():
    settings = Settings(method_name="FPFH", quirks=PROTOCOLS["published"], rgb_s_lambda=2.0, random_state=3)
    assert Settings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    "change", [{"seed": "0"}, {"img_size": 224.0}, {"brightness": 1}, {"quirks": {"blur": 8}}, {"seed": True}]
)
def test_plain_data_of_another_form_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Settings.from_dict({**Settings().as_dict(), **change})


def test_lambdas_default_to_the_factors_of_the_methods_row():
    banks = Settings(xyz_smap_lambda=3.0).method.banks
    assert [(bank.score_factor, bank.map_factor) for bank in banks] == [(1.0, 3.0), (0.1, 0.1), (1.0, 1.0)]
