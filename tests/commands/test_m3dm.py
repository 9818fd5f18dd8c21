"""M3DM, the object: fit, predict, extract, save and load from a notebook; and main.py's saved detectors."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dataset import DatasetError, Pair, list_samples
from feature_extractors.detector_file import DetectorFileError, checksum
from feature_extractors.methods import METHODS
from m3dm_runner import M3DM, NotFittedError, Settings
from models.uff.block import random_fusion_block
from tests.conftest import write_class
from tests.tiny_runs import read_record, read_scores, run_main
from utils.image_files import read_rgb, read_xyz, write_xyz
from utils.observer import Observer

VIT_S = "vit_small_patch8_224_dino"
CHEAP = "Point_MAE"
STAGES = ["extract_train", "fit_banks", "fit_decision"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_class(root, "bagel")
    return root


@pytest.fixture(scope="module")
def files(data) -> list[Pair]:
    """Image and cloud of the training samples."""
    return [Pair(sample.rgb, sample.xyz) for sample in list_samples(data / "bagel", "train")]


@pytest.fixture(scope="module")
def arrays(files) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(read_rgb(rgb), read_xyz(xyz)) for rgb, xyz in files]


@pytest.fixture(scope="module")
def defect(data) -> Pair:
    folder = data / "bagel" / "test" / "hole"
    return Pair(folder / "rgb" / "000.png", folder / "xyz" / "000.tiff")


def _settings(method: str = CHEAP, **changes) -> Settings:
    small = {"img_size": 32, "num_group": 16, "group_size": 8, "f_coreset": 0.5}
    return Settings(method, rgb_backbone_name=VIT_S, **{**small, **changes})


def _model(method: str = CHEAP, observer: Observer | None = None, **changes) -> M3DM:
    return M3DM(_settings(method, **changes), random_weights=True, device="cpu", observer=observer)


def _score(model: M3DM, part: Pair) -> tuple[float, bytes]:
    score = model.predict(*part)
    return score.image, score.map.tobytes()


class _Notes(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.done: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    @contextmanager
    def stage(self, name):
        self.stages.append(name)
        yield

    @contextmanager
    def progress(self, title, total):
        def advance(count):
            self.done[title] = self.done.get(title, 0) + count

        yield advance
        assert self.done[title] == total

    def left_out(self, sample, reason):
        self.reasons[sample] = reason


class TestFit:
    @pytest.fixture(scope="class")
    def expected(self, data, defect):
        return _score(_model().fit(data / "bagel"), defect)

    def test_it_returns_self_with_the_fitted_attributes(self, data):
        model = _model()
        assert model.fit(str(data / "bagel")) is model
        assert list(model.detector_.banks) == ["xyz"]
        assert model.counts_ == {"train": 3, "xyz_bank_rows": 3 * 8 * 8 // 2}

    def test_a_list_of_paths_is_the_folder(self, files, defect, expected):
        assert _score(_model().fit(files), defect) == expected
        as_text = [(str(rgb), str(xyz)) for rgb, xyz in files]
        assert _score(_model().fit(as_text), defect) == expected

    def test_a_folder_of_raw_parts_is_refused_unless_unchecked(self, tmp_path):
        folder = write_class(tmp_path, "bagel")
        for path in folder.rglob("*.tiff"):
            cloud = read_xyz(path)
            cloud[cloud[..., 2] == 0] = (0.01, 0.01, 0.6)
            write_xyz(path, cloud)
        with pytest.raises(ValueError, match="does not look preprocessed"):
            _model().fit(folder)
        assert _model().fit(folder, unchecked=True).counts_["train"] == 3

    def test_arrays_are_the_files_from_a_generator_too(self, arrays, defect, expected):
        assert _score(_model().fit(arrays), defect) == expected
        assert _score(_model().fit(pair for pair in arrays), defect) == expected

    def test_its_arguments_stay_as_they_are(self, arrays):
        given = [(rgb.copy(), xyz.copy()) for rgb, xyz in arrays]
        _model("DINO+Point_MAE").fit(given)
        assert len(given) == len(arrays)
        for found, before in zip(given, arrays, strict=True):
            np.testing.assert_array_equal(found[0], before[0])
            np.testing.assert_array_equal(found[1], before[1])

    def test_patches_that_it_is_given_stay_as_they_are(self, files):
        model = _model("DINO+Point_MAE")
        patches = [model.extract(*pair) for pair in files]
        before = [{name: of_kind.rows.clone() for name, of_kind in each.items()} for each in patches]
        model.fit_patches(patches, expected=3)
        for found, expected in zip(patches, before, strict=True):
            assert all(torch.equal(found[name].rows, rows) for name, rows in expected.items())

    def test_a_second_one_replaces_the_first(self, files, defect, expected):
        model = _model().fit(files[:2])
        assert _score(model, defect) != expected
        assert _score(model.fit(files), defect) == expected
        assert model.counts_["train"] == 3

    def test_no_more_samples_than_max_sample_are_taken(self, files, defect):
        limited = _model(max_sample=2).fit(files)
        assert limited.counts_["train"] == 2
        assert _score(limited, defect) == _score(_model().fit(files[:2]), defect)

    def test_the_observer_is_told_of_stages_progress_and_left_out_samples(self, arrays):
        notes = _Notes()
        without_points = (arrays[0][0], np.zeros_like(arrays[0][1]))
        model = _model(observer=notes).fit([arrays[0], without_points, arrays[1]])
        assert notes.stages == STAGES
        assert notes.done == {"train": 3}
        assert notes.reasons == {"sample 1": "the cloud has no point"}
        assert model.counts_["train"] == 2

    def test_left_out_samples_give_a_warning_where_nobody_observes(self, arrays):
        without_points = (arrays[0][0], np.zeros_like(arrays[0][1]))
        with pytest.warns(UserWarning, match="left out sample 0: the cloud has no point"):
            _model().fit([without_points, arrays[0]])

    def test_nothing_to_fit_on_is_an_error(self, tmp_path):
        with pytest.raises(DatasetError, match="no training sample can be used"):
            _model().fit([])
        with pytest.raises(DatasetError, match="no sample"):
            _model().fit(tmp_path)

    def test_a_failed_one_leaves_the_model_as_it_was(self, files, defect, expected):
        model = _model().fit(files)
        with pytest.raises(DatasetError):
            model.fit([])
        assert _score(model, defect) == expected


class TestPredict:
    @pytest.mark.parametrize("use", ["predict", "predict_all", "save", "calibrate"])
    def test_it_needs_a_fit_and_says_so(self, use, defect, tmp_path):
        arguments = {"predict": defect, "save": (tmp_path / "a.m3dm",)}.get(use, ([defect],))
        with pytest.raises(NotFittedError, match="call fit on good parts, or load a saved detector"):
            getattr(_model(), use)(*arguments)
        assert not list(tmp_path.iterdir())

    def test_files_and_arrays_score_the_same(self, files, defect):
        model = _model("DINO+Point_MAE+Fusion").fit(files)
        arrays = Pair(read_rgb(defect.rgb), read_xyz(defect.xyz))
        assert _score(model, arrays) == _score(model, defect)
        (from_many,) = model.predict_all([defect])
        assert (from_many.image, from_many.map.tobytes()) == _score(model, defect)

    def test_a_map_has_the_side_of_the_settings_and_is_float32(self, files, defect):
        score = _model().fit(files).predict(*defect)
        assert (score.map.shape, score.map.dtype) == ((32, 32), np.float32)
        assert isinstance(score.image, float)

    @pytest.mark.parametrize("use", ["predict", "extract"])
    def test_a_part_that_cannot_be_used_is_an_error(self, use, files, arrays):
        rgb, xyz = arrays[0]
        act = getattr(_model().fit(files), use)
        with pytest.raises(ValueError, match="the cloud has no point"):
            act(rgb, np.zeros_like(xyz))
        with pytest.raises(ValueError, match="must show the same pixels"):
            act(rgb, xyz[:-1])


@pytest.mark.parametrize("method", METHODS)
def test_extraction_needs_no_fit_and_gives_what_a_fit_is_fed(method, files):
    model = _model(method)
    patches = model.extract(*files[0])
    assert set(patches) == set(model.settings.method.backbones) | set(model.settings.method.sources)
    for source, of_source in patches.items():
        side = model.settings.rgb_side if source == "rgb" else model.settings.xyz_side
        assert of_source.dense().shape == (side * side, model.settings.dim(source))
    (among_many,) = model.extract_all(files[:1])
    assert all(torch.equal(among_many[name].dense(), patches[name].dense()) for name in patches)


class TestSavedDetector:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_loaded_one_gives_byte_equal_scores_without_a_fit(self, method, files, defect, tmp_path):
        model = _model(method).fit(files)
        model.save(tmp_path / "bagel.m3dm")
        loaded = M3DM.load(tmp_path / "bagel.m3dm", random_weights=True, device="cpu")
        assert _score(loaded, defect) == _score(model, defect)
        assert loaded.settings == model.settings
        assert loaded.counts_ == model.counts_

    def test_float16_rows_score_nearly_the_same(self, files, defect, tmp_path):
        model = _model("DINO+Point_MAE").fit(files)
        model.save(tmp_path / "half.m3dm", dtype="float16")
        loaded = M3DM.load(tmp_path / "half.m3dm", random_weights=True, device="cpu")
        assert {bank.rows.dtype for bank in loaded.detector_.banks.values()} == {torch.float16}
        assert loaded.predict(*defect).image == pytest.approx(model.predict(*defect).image, rel=1e-2)

    def test_a_calibration_comes_back(self, files, defect, tmp_path):
        model = _model().fit(files[:2]).calibrate(files[2:])
        model.save(tmp_path / "bagel.m3dm")
        loaded = M3DM.load(tmp_path / "bagel.m3dm", random_weights=True, device="cpu")
        assert loaded.calibration_ == model.calibration_
        assert loaded.calibration_.image_threshold == model.predict(*files[2]).image

    def test_it_says_with_what_it_was_fitted_also_when_it_is_saved_again(self, files, tmp_path):
        model = _model().fit(files)
        model.versions_ = {**model.versions_, "torch": "of the fit"}
        model.save(tmp_path / "a.m3dm")
        M3DM.load(tmp_path / "a.m3dm", random_weights=True, device="cpu").save(tmp_path / "b.m3dm")
        assert (tmp_path / "a.m3dm").read_bytes() == (tmp_path / "b.m3dm").read_bytes()

    def test_what_is_forgotten_leaves_no_trace(self, files):
        model = _model()
        before = set(vars(model))
        model.fit(files[:2]).calibrate(files[2:]).forget()
        assert set(vars(model)) == before

    def test_other_weights_are_named(self, files, tmp_path):
        path = tmp_path / "bagel.m3dm"
        for seed in (0, 1):
            block = random_fusion_block(33, 384, seed)
            torch.save({"model": block.state_dict()}, tmp_path / f"uff{seed}.pth")
        how = {"random_weights": True, "device": "cpu"}
        settings = _settings("Fusion", xyz_backbone_name="FPFH")
        first, second = (str(tmp_path / f"uff{seed}.pth") for seed in (0, 1))
        M3DM(settings, fusion_module_path=first, **how).fit(files).save(path)
        M3DM.load(path, fusion_module_path=first, **how)
        with pytest.raises(
            DetectorFileError, match=r"m3dm: was fitted with other weights: fusion 'uff0\.pth"
        ):
            M3DM.load(path, fusion_module_path=second, **how)

    def test_other_settings_are_named_and_the_model_stays_as_it_was(self, files, defect, tmp_path):
        path = tmp_path / "bagel.m3dm"
        _model().fit(files).save(path)
        other = _model(f_coreset=0.25).fit(files)
        before = _score(other, defect)
        message = r"m3dm: was fitted with other settings: f_coreset 0\.5, given 0\.25$"
        with pytest.raises(DetectorFileError, match=message):
            other.restore(path)
        assert _score(other, defect) == before

    def test_a_calibration_that_is_none_is_an_error_that_names_the_file(self, files, defect, tmp_path):
        path = tmp_path / "bagel.m3dm"
        _model().fit(files).save(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["m3dm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header["calibration"] = {"rule": "max"}
        header["sha256"] = checksum(header, tensors)
        save_file(tensors, path, {"m3dm": json.dumps(header)})
        model = _model().fit(files[:2])
        before = _score(model, defect)
        with pytest.raises(ValueError, match="has no field") as error:
            model.restore(path)
        assert isinstance(error.value, DetectorFileError)
        assert str(path) in str(error.value)
        assert _score(model, defect) == before


class TestCommand:
    """main.py --save_detector and --load_detector."""

    @pytest.mark.parametrize("method", ["DINO", "DINO+Point_MAE+Fusion", "FPFH"])
    def test_loaded_detectors_give_byte_equal_scores_without_a_fit(self, data, tmp_path, method):
        detectors = str(tmp_path / "detectors")
        assert run_main(data, tmp_path / "fitted", method, "--save_detector", detectors) == 0
        assert [p.name for p in (tmp_path / "detectors").iterdir()] == ["bagel.m3dm"]
        assert run_main(data, tmp_path / "loaded", method, "--load_detector", detectors) == 0
        scores = [(tmp_path / run / "scores/bagel.csv").read_bytes() for run in ("fitted", "loaded")]
        assert scores[0] == scores[1]
        fitted, loaded = (read_record(tmp_path / run)["classes"]["bagel"] for run in ("fitted", "loaded"))
        assert loaded["counts"] == fitted["counts"]
        assert loaded["au_pro"] == fitted["au_pro"]
        assert list(loaded["seconds"]) == ["predict", "metrics"]

    def test_the_saved_file_is_the_one_that_the_object_loads(self, data, tmp_path, defect):
        assert run_main(data, tmp_path, CHEAP, "--save_detector", str(tmp_path / "detectors")) == 0
        model = M3DM.load(tmp_path / "detectors" / "bagel.m3dm", random_weights=True, device="cpu")
        (row,) = (row for row in read_scores(tmp_path, "bagel") if row["path"] == "test/hole/rgb/000.png")
        assert float(row["score"]) == model.predict(*defect).image

    @pytest.mark.parametrize(
        ("spoil", "flags", "message"),
        [
            (Path.unlink, [], "bagel.m3dm: no such file; fit a detector and save it"),
            (
                lambda p: p.write_bytes(p.read_bytes()[:-9]),
                [],
                "is no detector file, or is cut off or damaged",
            ),
            (Path.touch, ["--f_coreset", "0.25"], "other settings: f_coreset 0.5, given 0.25"),
            (Path.touch, ["--seed", "1"], "other settings: seed 0, given 1"),
        ],
        ids=["missing", "cut off", "another size", "another seed"],
    )
    def test_a_detector_that_is_missing_or_does_not_fit_is_one_line(
        self, data, tmp_path, capsys, spoil, flags, message
    ):
        detectors = tmp_path / "detectors"
        assert run_main(data, tmp_path / "fitted", CHEAP, "--save_detector", str(detectors)) == 0
        spoil(detectors / "bagel.m3dm")
        capsys.readouterr()
        loading = ["--load_detector", str(detectors), *flags]
        assert run_main(data, tmp_path / "loaded", CHEAP, *loading) == 1
        _, at_once, *summary = capsys.readouterr().err.splitlines()  # the first warns of random weights
        assert at_once.startswith(f"bagel: failed: {detectors / 'bagel.m3dm'}: ")
        assert message in at_once
        assert [line for line in summary if message in line] == summary[-1:]
        assert not (tmp_path / "loaded" / "scores").exists()
