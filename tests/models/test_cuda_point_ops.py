"""Groups by pointnet2_ops and knn_cuda against those of the CPU; on a pretended GPU, by stand-ins for the two."""

from __future__ import annotations

import dataclasses
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import load_sample
from feature_extractors.extractor import Extractor
from feature_extractors.networks import load_networks
from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource
from models.point_transformer.cuda_point_ops import (
    KNN_CUDA_WHEEL,
    POINTNET2_SOURCE,
    REMEDY,
    load_cuda_point_ops,
)
from models.point_transformer.point_ops import group_points
from tests import cuda_packages
from tests.reference.point_ops import wavy_surface
from tests.tiny_runs import all_files, read_record, read_scores, run_main
from utils.structures import Sample

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
RANDOM = WeightsSource(random_weights=True)
POINT_MAE = Settings(method_name="Point_MAE", img_size=32, num_group=16, group_size=8)


@pytest.fixture
def packages(gpu_or_its_pretence, monkeypatch):
    """The two packages where there is a GPU; without one, stand-ins."""
    if torch.cuda.is_available():
        pytest.importorskip("pointnet2_ops")
        pytest.importorskip("knn_cuda")
    else:
        cuda_packages.install(monkeypatch)


def _on_gpu(points, num_group, group_size):
    found = load_cuda_point_ops().group(torch.from_numpy(points).to(CUDA), num_group, group_size)
    assert all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in found)
    return [tensor.cpu().numpy() for tensor in found]


def _sorted_rows(groups):
    """Each group's points in lexicographic order, so that groups compare as sets."""
    order = np.lexsort(groups.transpose(2, 0, 1), axis=1)
    return np.take_along_axis(groups, order[..., None], axis=1)


def _sample(num_points: int, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    pixel_index = np.sort(rng.permutation(32 * 32)[:num_points])
    points = wavy_surface(32 * 32, seed)[pixel_index]
    return Sample(rng.standard_normal((3, 32, 32)).astype(np.float32), points, pixel_index)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("num_points", "num_group", "group_size"), [(1, 4, 4), (10, 1024, 128), (400, 64, 32), (5000, 256, 64)]
)
def test_groups_are_those_of_the_cpu_but_for_the_order_within(packages, num_points, num_group, group_size):
    points = wavy_surface(num_points, seed=num_points)
    expected = group_points(points, num_group, group_size)
    groups, centers = _on_gpu(points, num_group, group_size)
    np.testing.assert_array_equal(centers, expected.centers)
    np.testing.assert_array_equal(_sorted_rows(groups), _sorted_rows(expected.groups))


@pytest.mark.cuda
def test_points_near_the_origin_are_passed_over_as_on_the_cpu(packages):
    points = wavy_surface(400)
    points[:100] *= 0.05  # norm below 0.032 m
    groups, centers = _on_gpu(points, 50, 16)
    expected = group_points(points, 50, 16)
    np.testing.assert_array_equal(centers, expected.centers)
    np.testing.assert_array_equal(_sorted_rows(groups), _sorted_rows(expected.groups))


@pytest.mark.cuda
def test_where_points_tie_another_is_taken_that_is_as_far(packages):
    points = (np.random.default_rng(0).integers(4, size=(300, 3)) * 0.05 + 0.3).astype(np.float32)
    _, centers = _on_gpu(points, 60, 8)
    chosen = group_points(points, 60, 8).centers
    assert not np.array_equal(centers, chosen)
    for found in (centers, chosen):
        for step in range(1, len(found)):
            distance = np.linalg.norm(points[:, None] - found[None, :step], axis=2).min(axis=1)
            newest = np.linalg.norm(found[step] - found[:step], axis=1).min()
            assert newest == pytest.approx(distance.max(), abs=1e-6)


@pytest.mark.cuda
@pytest.mark.real_data
@pytest.mark.parametrize("sample", ["train/good/xyz/000.tiff", "test/hole/xyz/000.tiff"])
def test_real_clouds_have_the_same_centers_and_all_but_the_same_groups(packages, real_data, sample):
    xyz = real_data / "mvtec3d" / "cable_gland" / sample
    points = load_sample(xyz.parents[1] / "rgb" / f"{xyz.stem}.png", xyz, image_size=96).points
    expected = group_points(points, 256, 64)
    groups, centers = _on_gpu(points, 256, 64)
    np.testing.assert_array_equal(centers, expected.centers)
    equal = (_sorted_rows(groups) == _sorted_rows(expected.groups)).all(axis=(1, 2))
    assert equal.sum() >= 255


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["Point_MAE", "Point_Bert"])
def test_patches_are_those_of_groups_from_the_workers(packages, name):
    settings = dataclasses.replace(POINT_MAE, xyz_backbone_name=name)
    samples = [_sample(1000, 0), _sample(12, 1)]
    found = []
    for point_ops in ("cpu", "cuda"):
        extractor = Extractor(settings, load_networks(settings, RANDOM, CUDA, point_ops), CUDA)
        prepare = pickle.loads(pickle.dumps(extractor.preparation))
        prepared = [prepare(sample) for sample in samples]
        found.append((prepared, [patches["xyz"].dense().cpu() for patches in extractor.extract(prepared)]))
    (by_workers, expected), (handed_over, patches) = found
    assert not any(hasattr(sample.geometry, "groups") for sample in handed_over)
    assert [sample.remarks for sample in handed_over] == [sample.remarks for sample in by_workers]
    for ours, theirs in zip(patches, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_run_gives_the_scores_of_groups_from_the_workers(packages, tiny_dataset, tmp_path):
    scores = {}
    for point_ops in ("cpu", "cuda"):
        flags = ["--device", "cuda", "--num_workers", "1", "--point_ops", point_ops]
        assert run_main(tiny_dataset, tmp_path / point_ops, "DINO+Point_MAE", *flags) == 0
        assert read_record(tmp_path / point_ops)["point_ops"] == point_ops
        scores[point_ops] = [float(row["score"]) for row in read_scores(tmp_path / point_ops, "bagel")]
    assert scores["cuda"] == pytest.approx(scores["cpu"], rel=1e-3)


@pytest.mark.cuda
def test_cloud_that_is_not_finite_is_refused_before_the_gpu_sees_it(packages):
    extractor = Extractor(POINT_MAE, load_networks(POINT_MAE, RANDOM, CUDA, "cuda"), CUDA)
    sample = _sample(100, 0)
    sample.points[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        extractor.preparation(sample)


@pytest.mark.cuda
@pytest.mark.parametrize("missing", ["pointnet2_ops.pointnet2_utils", "knn_cuda"])
def test_without_a_package_the_commands_that_install_it_are_named(
    tiny_dataset, tmp_path, capsys, monkeypatch, missing
):
    cuda_packages.install(monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    flags = ["--device", "cuda", "--point_ops", "cuda"]
    assert run_main(tiny_dataset, tmp_path / "results", "Point_MAE", *flags) == 1
    line = _only_error(capsys)
    assert f"--point_ops cuda: {missing} can't be loaded" in line
    assert REMEDY in line
    assert REMEDY.count("pip install") == 2
    assert all_files(tmp_path / "results") == []


@pytest.mark.cuda
def test_package_that_does_not_compile_is_named_too(tmp_path, monkeypatch):
    cuda_packages.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "knn_cuda")
    (tmp_path / "knn_cuda.py").write_text("raise OSError('CUDA_HOME environment\\nvariable is not set')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"knn_cuda can't be loaded \(CUDA_HOME environment variable is not set\)"
    ):
        load_cuda_point_ops()


@pytest.mark.parametrize(
    ("method", "remedy"), [("Point_MAE", "use --point_ops cpu"), ("DINO", "drop it"), ("FPFH", "drop it")]
)
def test_run_that_can_not_group_on_a_gpu_is_told_so(tiny_dataset, tmp_path, capsys, method, remedy):
    assert run_main(tiny_dataset, tmp_path / "results", method, "--point_ops", "cuda") == 1
    line = _only_error(capsys)
    assert "--point_ops cuda" in line
    assert remedy in line


def test_point_ops_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="--point_ops gpu: use cpu or cuda"):
        load_networks(POINT_MAE, RANDOM, CPU, "gpu")


def test_requirement_file_names_the_same_addresses_and_nothing_else_asks_for_them():
    root = Path(__file__).parents[2]
    optional = (root / "requirement-cuda.txt").read_text(encoding="utf-8")
    assert KNN_CUDA_WHEEL in optional
    assert POINTNET2_SOURCE in optional
    assert not re.search("knn_cuda|pointnet2", (root / "requirement.txt").read_text(encoding="utf-8"))


def _only_error(capsys) -> str:
    """The one line on stderr; a traceback would be more."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("main.py: error: ")
    return line
