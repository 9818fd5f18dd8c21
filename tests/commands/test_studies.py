"""Kept features, seeds, shots and shaken features: what they share, and what they must not change."""

import csv
import json
import os
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import list_samples
from evaluation.options import Variant, variants
from evaluation.study import drawn, shaken
from feature_extractors.extractor import Extractor, PreparedSample
from feature_extractors.feature_cache import FeatureCache
from feature_extractors.settings import Settings
from models.fpfh.encoder import Description
from tests.conftest import write_class
from tests.tiny_runs import all_files, read_record, run_main
from utils.metrics import METRICS
from utils.structures import Patches, SampleFiles

CLASS = ["--class_name", "bagel"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_class(root, "bagel", train=4)
    return root


def _no_network(monkeypatch) -> None:
    monkeypatch.setattr(Extractor, "backbone_patches", lambda *_: pytest.fail("a network is used"))


def _scores(results: Path) -> bytes:
    return (results / "scores" / "bagel.csv").read_bytes()


def _numbers(scores: bytes) -> list[float]:
    return [float(row["score"]) for row in csv.DictReader(scores.decode().splitlines())]


class TestFeatures:
    @pytest.fixture(scope="class")
    def kept(self, data, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("kept")
        assert (
            run_main(data, folder / "results", "DINO+Point_MAE", "--features", str(folder / "features")) == 0
        )
        return folder

    @pytest.mark.parametrize("method", ["DINO+Point_MAE", "DINO+Point_MAE+Fusion"])
    def test_another_method_needs_no_network_and_scores_are_equal(
        self, data, kept, tmp_path, monkeypatch, method
    ):
        assert run_main(data, tmp_path / "anew", method) == 0
        _no_network(monkeypatch)
        flags = ["--features", str(kept / "features"), "--batch_size", "3", "--num_workers", "1"]
        assert run_main(data, tmp_path / "again", method, *flags) == 0
        assert _scores(tmp_path / "again") == _scores(tmp_path / "anew")

    def test_fpfh_is_kept_as_it_is(self, data, tmp_path, monkeypatch):
        flags = ["--features", str(tmp_path / "features")]
        assert run_main(data, tmp_path / "anew", "FPFH", *flags) == 0
        _no_network(monkeypatch)
        assert run_main(data, tmp_path / "again", "FPFH", *flags) == 0
        assert _scores(tmp_path / "again") == _scores(tmp_path / "anew")

    def test_what_one_method_has_left_another_one_completes(self, data, tmp_path, monkeypatch):
        vit_s_alone = [*CLASS, "--features", str(tmp_path / "features"), "--xyz_backbone_name", "FPFH"]
        assert run_main(data, tmp_path / "xyz", "FPFH", *vit_s_alone) == 0
        monkeypatch.setattr(Description, "__call__", lambda *_: pytest.fail("the cloud is described again"))
        assert run_main(data, tmp_path / "both", "DINO+Point_MAE", *vit_s_alone) == 0
        monkeypatch.undo()
        _no_network(monkeypatch)
        assert run_main(data, tmp_path / "again", "DINO+Point_MAE", *vit_s_alone) == 0
        assert _scores(tmp_path / "again") == _scores(tmp_path / "both")
        monkeypatch.undo()
        assert run_main(data, tmp_path / "anew", "DINO+Point_MAE", *CLASS, "--xyz_backbone_name", "FPFH") == 0
        assert _scores(tmp_path / "anew") == _scores(tmp_path / "both")

    def test_other_settings_and_weights_have_other_folders(self, data, kept, tmp_path):
        features = ["--features", str(kept / "features")]
        before = {path.name for path in (kept / "features").iterdir()}
        assert run_main(data, tmp_path, "DINO+Point_MAE", *features, "--num_group", "9") == 0
        added = {path.name for path in (kept / "features").iterdir()} - before
        assert [name.startswith("xyz-Point_MAE-") for name in added] == [True]
        about = json.loads((kept / "features" / added.pop() / "identity.json").read_text())
        assert (about["num_group"], about["weights"]) == (9, "random, seed 0")

    @pytest.mark.parametrize("change", ["damaged", "truncated", "of another time", "gone"])
    def test_what_is_damaged_or_stale_is_extracted_anew(self, data, tmp_path, monkeypatch, change):
        flags = ["--features", str(tmp_path / "features"), *CLASS]
        assert run_main(data, tmp_path / "one", "DINO", *flags) == 0
        (file,) = tmp_path.glob("features/rgb-*/*/bagel/test/hole/rgb/001.npz")
        content = file.read_bytes()
        image = data / "bagel/test/hole/rgb/001.png"
        if change == "damaged":
            file.write_bytes(content[:2000] + bytes(8) + content[2008:])
        elif change == "truncated":
            file.write_bytes(content[:-100])
        elif change == "of another time":
            stat = image.stat()
            os.utime(image)
        else:
            file.unlink()
        seen = []
        extract = Extractor.backbone_patches
        monkeypatch.setattr(
            Extractor, "backbone_patches", lambda self, batch: (seen.extend(batch), extract(self, batch))[1]
        )
        assert run_main(data, tmp_path / "two", "DINO", *flags) == 0
        assert len(seen) == 1
        assert _scores(tmp_path / "two") == _scores(tmp_path / "one")
        if change == "of another time":
            os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        else:
            assert file.read_bytes() == content

    def test_what_is_odd_about_the_cloud_is_no_remark_on_the_image(self, data, tmp_path):
        odd = PreparedSample(np.zeros(0), None, on_sample=("sizes differ",), on_cloud=("few points",))
        assert odd.remarks_of("rgb") == ("sizes differ",)
        assert odd.remarks_of("xyz") == odd.remarks == ("sizes differ", "few points")
        settings = Settings("DINO+Point_MAE", rgb_backbone_name="vit_small_patch8_224_dino", img_size=32)
        cache = FeatureCache(tmp_path, settings, {"rgb": "a", "xyz": "b"})
        (sample,) = list_samples(data / "bagel", "train")[:1]
        patches = {
            name: Patches(
                torch.ones(1, settings.dim(name)), torch.zeros(side * side, dtype=torch.int64), side
            )
            for name, side in (("rgb", settings.rgb_side), ("xyz", settings.xyz_side))
        }
        cache.write(sample, patches, odd.remarks_of, cache.read(sample))
        assert cache.read(sample).remarks == odd.remarks
        rgb = FeatureCache(tmp_path, replace(settings, method_name="DINO"), {"rgb": "a"})
        assert rgb.read(sample).remarks == ("sizes differ",)

    def test_classes_of_one_name_in_two_data_sets_are_kept_apart(self, data, tmp_path, monkeypatch):
        features = ["--features", str(tmp_path / "features")]
        other = Path(shutil.copytree(data, tmp_path / "other"))
        for root in (data, other):
            assert run_main(root, tmp_path / "results" / root.name, "FPFH", *features) == 0
        _no_network(monkeypatch)
        assert run_main(data, tmp_path / "again", "FPFH", *features) == 0


class TestSeeds:
    @pytest.fixture(scope="class")
    def study(self, data, tmp_path_factory) -> Path:
        results = tmp_path_factory.mktemp("study")
        flags = ["--random_states", "0", "5", "--f_coreset", "0.1", "--img_size", "64"]
        assert run_main(data, results, "DINO", *flags) == 0
        return results

    def test_each_variant_is_an_ordinary_run(self, data, study, tmp_path):
        flags = ["--f_coreset", "0.1", "--img_size", "64", "--random_state", "5"]
        assert run_main(data, tmp_path, "DINO", *flags) == 0
        assert _scores(study / "random_state_5") == _scores(tmp_path)
        assert read_record(study / "random_state_5")["settings"] == read_record(tmp_path)["settings"]
        assert (study / "random_state_0/report.html").is_file()

    def test_mean_and_deviation_of_every_metric_are_in_results_json_and_the_tables(self, study):
        each = [read_record(study / f"random_state_{seed}")["classes"]["bagel"] for seed in (0, 5)]
        record = read_record(study)
        result = record["classes"]["bagel"]
        for metric in METRICS:
            values = [one[metric.key] for one in each]
            assert result[metric.key] == pytest.approx(statistics.fmean(values))
            assert result["deviation"][metric.key] == pytest.approx(statistics.stdev(values))
        assert list(result["variants"]) == ["random_state_0", "random_state_5"]
        for metric in METRICS:
            values = [one["kinds"]["hole"][metric.key] for one in each]
            assert result["kinds"]["hole"][metric.key] == pytest.approx(statistics.fmean(values))
        rows = (study / "pixel_rocauc_results.md").read_text().splitlines()[-2:]
        value = f"{result['pixel_rocauc']:.3f}"
        assert rows[0] == f"| DINO (random weights) (2 variants), mean | {value} | {value} |"
        assert "deviation" in rows[1]

    def test_studies_of_one_folder_take_their_locks_in_one_order(self, data, tmp_path, monkeypatch):
        from evaluation import finish

        taken = []
        wait = finish.others_waiting
        monkeypatch.setattr(finish, "others_waiting", lambda folder: (taken.append(folder), wait(folder))[1])
        for seeds in (("0", "1"), ("1", "0")):
            assert run_main(data, tmp_path, "FPFH", "--shake", "1e-6", "--shake_seeds", *seeds) == 0
        assert taken[:3] == taken[3:] == [tmp_path, *(tmp_path / f"shake_1e-06_seed_{i}" for i in (0, 1))]

    def test_a_study_beside_one_at_work_is_not_complete(self, data, tmp_path):
        flags = ["--shake", "1e-6", "--shake_seeds", "0", "1"]
        assert run_main(data, tmp_path, "FPFH", *flags) == 0
        assert read_record(tmp_path)["complete"]
        path = tmp_path / "shake_1e-06_seed_0/classes/bagel.json"
        record = json.loads(path.read_text())
        (path.parent / "rope.json").write_text(json.dumps({**record, "run_complete": False}))
        assert run_main(data, tmp_path, "FPFH", *flags) == 0
        assert not read_record(tmp_path)["complete"]

    def test_features_are_extracted_once_and_do_not_stay(self, data, tmp_path, monkeypatch):
        count = []
        extract = Extractor.backbone_patches
        monkeypatch.setattr(
            Extractor, "backbone_patches", lambda self, batch: (count.extend(batch), extract(self, batch))[1]
        )
        assert run_main(data, tmp_path, "DINO", "--random_states", "0", "1", "2") == 0
        assert len(count) == 4 + 4
        assert not (tmp_path / ".features").exists()
        assert [name for name in all_files(tmp_path) if name.endswith(".npz")] == []


class TestShots:
    def test_a_class_is_doubtful_when_most_of_its_shots_are_left_out(self, data, tmp_path, capsys):
        root = shutil.copytree(data, tmp_path / "data")
        for i in (0, 1, 2):
            (root / f"bagel/train/good/rgb/{i:03d}.png").write_bytes(b"")
        flags = ["--shots", "3", "--unchecked"]
        assert run_main(root, tmp_path / "results", "DINO", *flags) == 1
        assert "bagel: doubtful: 2 of 3 training samples were left out" in capsys.readouterr().err

    def test_the_draw_is_recorded_by_name_and_names_the_row(self, data, tmp_path):
        assert run_main(data, tmp_path, "DINO", "--shots", "2", "--shot_seeds", "3") == 0
        record = read_record(tmp_path)
        samples = record["classes"]["bagel"]["training_samples"]
        assert len(samples) == record["classes"]["bagel"]["counts"]["train"] == 2
        assert set(samples) <= {f"train/good/rgb/{i:03d}.png" for i in range(4)}
        assert record["row"] == "DINO (random weights) (2 shots)"
        assert (record["shots"], record["shot_seed"]) == (2, 3)

    def test_too_many_shots_fail_the_class_by_name(self, data, tmp_path, capsys):
        assert run_main(data, tmp_path, "DINO", "--shots", "5") == 1
        assert "--shots 5: bagel has 4 training samples; use fewer shots" in capsys.readouterr().err

    def test_fewer_shots_of_a_seed_are_among_more_and_classes_draw_apart(self):
        samples = [SampleFiles(Path(), Path(), None, 0, f"train/good/rgb/{i:03d}.png") for i in range(50)]
        few, more = (drawn(Variant(shots=k, shot_seed=1), samples, "bagel") for k in (4, 9))
        assert set(map(str, few)) <= set(map(str, more))
        assert [s.path for s in more] == sorted(s.path for s in more)
        assert few != drawn(Variant(shots=4, shot_seed=2), samples, "bagel")
        assert few != drawn(Variant(shots=4, shot_seed=1), samples, "rope")


class TestShake:
    def test_scores_move_by_little_and_the_same_seed_gives_the_same(self, data, tmp_path):
        flags = ["--shake", "1e-4", "--shake_seeds", "0", "1"]
        for name in ("a", "b"):
            assert run_main(data, tmp_path / name, "FPFH", *flags) == 0
        assert run_main(data, tmp_path / "plain", "FPFH") == 0
        shaken_scores = [_scores(tmp_path / "a" / f"shake_0.0001_seed_{seed}") for seed in (0, 1)]
        plain = _scores(tmp_path / "plain")
        assert shaken_scores[0] == _scores(tmp_path / "b/shake_0.0001_seed_0")
        assert len({*shaken_scores, plain}) == 3
        for found in shaken_scores:
            assert _numbers(found) == pytest.approx(_numbers(plain), rel=0.05)

    def test_noise_is_a_matter_of_class_sample_modality_and_seed_and_of_no_order(self):
        ones = Patches(torch.ones(4, 3), torch.arange(4), 2)
        either = [{"rgb": ones, "xyz": ones}, {"xyz": ones, "rgb": ones}]
        of_each = [shaken(Variant(shake=1e-3), patches, "bagel/test/good/rgb/000.png") for patches in either]
        for modality in ("rgb", "xyz"):
            assert torch.equal(*(found[modality].rows for found in of_each))
        other_class = shaken(Variant(shake=1e-3), either[0], "rope/test/good/rgb/000.png")
        other_seed = shaken(Variant(shake=1e-3, shake_seed=1), either[0], "bagel/test/good/rgb/000.png")
        drawn_rows = [of_each[0]["rgb"], of_each[0]["xyz"], other_class["rgb"], other_seed["rgb"]]
        assert len({tuple(found.rows.flatten().tolist()) for found in drawn_rows}) == 4

    def test_features_that_were_kept_are_shaken_like_those_extracted_now(self, data, tmp_path):
        features = ["--features", str(tmp_path / "features")]
        assert run_main(data, tmp_path / "xyz", "Point_MAE", *features, "--xyz_backbone_name", "FPFH") == 0
        flags = ["--xyz_backbone_name", "FPFH", "--shake", "1e-4"]
        assert run_main(data, tmp_path / "a", "DINO+Point_MAE", *flags) == 0
        assert run_main(data, tmp_path / "b", "DINO+Point_MAE", *flags, *features) == 0
        assert _scores(tmp_path / "a") == _scores(tmp_path / "b")

    def test_zeros_stay_zeros_and_the_noise_is_relative(self):
        rows = torch.tensor([[0.0, 1.0, 1e6]]).repeat(4000, 1)
        patches = {"xyz": Patches(rows, torch.zeros(4, dtype=torch.int64), 2)}
        found = shaken(Variant(shake=1e-3), patches, "bagel/test/good/rgb/000.png")["xyz"].rows
        assert (found[:, 0] == 0).all()
        for column in (1, 2):
            noise = found[:, column] / rows[:, column] - 1
            assert abs(float(noise.mean())) < 1e-4
            assert float(noise.std()) == pytest.approx(1e-3, rel=0.05)


def test_all_combinations_are_variants_and_an_only_one_has_no_name():
    assert variants(random_state=3) == [Variant(random_state=3)]
    assert [v.name for v in variants(shots=5, shot_seeds=[0, 1], random_states=[2])] == [
        "shots_5_seed_0_random_state_2",
        "shots_5_seed_1_random_state_2",
    ]
    assert (
        len(variants(shots=1, shot_seeds=[0, 1], random_states=[0, 1, 2], shake=1e-6, shake_seeds=[0, 1]))
        == 12
    )


def test_seeds_that_change_nothing_are_warned_of(data, tmp_path, capsys):
    assert run_main(data, tmp_path / "fpfh", "FPFH", "--random_states", "0", "1") == 0
    assert "1 of 2 variants give the very figures of another one" in capsys.readouterr().err
    record = read_record(tmp_path / "fpfh")
    assert record["settings"]["random_state"] is None
    assert record["classes"]["bagel"]["training_samples"] is None


def test_a_study_leaves_nothing_of_a_plain_run_of_its_classes(data, tmp_path):
    assert run_main(data, tmp_path, "FPFH", "--save_preds") == 0
    assert run_main(data, tmp_path, "FPFH", "--shake", "1e-2", "--shake_seeds", "0", "1") == 0
    left = [name for name in all_files(tmp_path) if name.endswith("bagel.csv") or "pred_maps" in name]
    assert left == [f"shake_0.01_seed_{seed}/scores/bagel.csv" for seed in (0, 1)]
    assert not (tmp_path / "classes/bagel.json").exists()
