"""Whole runs on a GPU, or on a pretended one (tests/pretend_cuda.py), against the CPU."""

import numpy as np
import pytest

from models.uff.pairs import open_folder
from tests.conftest import write_class
from tests.tiny_runs import read_record, read_scores, run_main

pytestmark = pytest.mark.cuda
RUNS = {
    "DINO": [],
    "Point_MAE": ["--rm_zero_for_project"],
    "Fusion": ["--feature_dtype", "float16"],
    "DINO+Point_MAE": ["--batch_size", "2"],
    "DINO+Point_MAE+add": ["--protocol", "published"],
    "DINO+Point_MAE+Fusion": ["--xyz_backbone_name", "Point_Bert", "--asy_memory_bank", "2"],
    "FPFH": [],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_class(root, "bagel")
    return root


@pytest.mark.parametrize("method", RUNS)
def test_every_method_gives_the_cpus_scores(data, tmp_path, method):
    found = {}
    for device in ("cpu", "cuda"):
        assert run_main(data, tmp_path / device, method, *RUNS[method], "--device", device) == 0
        found[device] = _scores(tmp_path / device)
    assert read_record(tmp_path / "cuda")["device"].startswith("cuda")
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)


def _scores(results):
    return [float(row["score"]) for row in read_scores(results, "bagel")]


def test_bfloat16_moves_the_scores_a_little(data, tmp_path):
    for precision in ("float32", "bf16"):
        flags = ["--precision", precision, "--device", "cuda"]
        assert run_main(data, tmp_path / precision, "Point_MAE", *flags) == 0
    exact, rounded = _scores(tmp_path / "float32"), _scores(tmp_path / "bf16")
    assert rounded == pytest.approx(exact, rel=0.1)
    assert rounded != pytest.approx(exact, rel=1e-4)


def test_live_drop_path_and_running_statistics_run_too(data, tmp_path):
    flags = ["--quirk", "drop_path=live", "batchnorm=running", "--device", "cuda"]
    assert run_main(data, tmp_path, "DINO+Point_MAE", *flags) == 0
    assert np.isfinite(_scores(tmp_path)).all()


def test_features_and_pictures_are_saved(data, tmp_path):
    store = ["--save_feature", "--save_feature_path", str(tmp_path / "patch_lib"), "--save_preds"]
    assert run_main(data, tmp_path / "results", "DINO+Point_MAE", *store, "--device", "cuda") == 0
    assert len(open_folder(tmp_path / "patch_lib").files) == 3
    assert len(list(tmp_path.rglob("pred_maps/bagel/**/*.tiff"))) == 4
