import dataclasses

import pytest

from feature_extractors.methods import METHODS
from feature_extractors.settings import PROTOCOLS, Quirks, Settings, quirk_values


def test_there_are_the_methods_of_the_release_and_their_banks_are_in_column_order():
    assert {name: spec.banks for name, spec in METHODS.items() if name != "FPFH"} == {
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
    assert (published.reweight_eps, published.distance_scale, published.zero_row) == (0.0, 1.0, False)
    assert published.standardize == "own"


def test_the_release_uses_one_sample_more_than_max_sample():
    assert Settings(max_sample=5).sample_limit == 5
    assert Settings(max_sample=5, quirks=PROTOCOLS["released"]).sample_limit == 6


def test_unknown_quirks_and_values_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"--quirk blurr: no such quirk; there are .*blur"):
        Quirks().replace({"blurr": "gaussian"})
    with pytest.raises(ValueError, match="--quirk blur=box: must be one of pil_8bit, gaussian"):
        Quirks().replace({"blur": "box"})
