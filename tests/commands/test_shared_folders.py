"""Runs that share a folder: with an earlier one whose files are gone, with one at work, with one of other settings."""

import json
import shutil

import pytest

from models.uff.pairs import open_folder
from tests.conftest import write_class
from tests.tiny_runs import run_main
from utils.files import write_json
from utils.results import alone_with_classes

CLASSES = ["bagel", "rope"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in CLASSES:
        write_class(root, name)
    return root


@pytest.mark.parametrize("lost", ["scores/bagel.csv", "pred_maps/bagel", "patch_lib"])
def test_a_done_class_whose_files_are_gone_is_done_again(data, tmp_path, lost):
    store = ["--save_feature", "--save_feature_path", str(tmp_path / "patch_lib"), "--save_preds"]
    command = ("DINO+Point_MAE", *store, "--class_name", *CLASSES)
    assert run_main(data, tmp_path, *command) == 0
    (tmp_path / "classes/rope.json").unlink()
    bagel = tmp_path / "classes/bagel.json"
    write_json(bagel, {**json.loads(bagel.read_text()), "run_complete": False})
    target = tmp_path / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert run_main(data, tmp_path, *command) == 0
    assert (tmp_path / "scores/bagel.csv").is_file()
    assert len(list(tmp_path.glob("pred_maps/bagel/*/*.png"))) == 4
    assert len(open_folder(tmp_path / "patch_lib").files) == 6


def test_a_second_run_into_the_same_folder_is_refused_while_one_is_at_work_on_its_class(
    data, tmp_path, capsys
):
    with alone_with_classes(tmp_path, ["rope"]):
        assert run_main(data, tmp_path, "DINO") == 1
        assert "another run is at work on rope there; use another" in capsys.readouterr().err
        assert run_main(data, tmp_path, "DINO", "--class_name", "bagel") == 0


def test_features_of_other_groups_are_not_mixed(data, tmp_path, capsys):
    store = ["--save_feature", "--save_feature_path", str(tmp_path / "patch_lib")]
    assert run_main(data, tmp_path / "a", "DINO+Point_MAE", *store, "--class_name", "bagel") == 0
    other = ["--class_name", "rope", "--num_group", "9"]
    assert run_main(data, tmp_path / "b", "DINO+Point_MAE", *store, *other) == 1
    assert "'num_group': '16'" in capsys.readouterr().err
