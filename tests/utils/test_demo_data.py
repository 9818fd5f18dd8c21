"""The procedural demo data set: layout and files as MVTec 3D-AD's, exact ground truth, seeded, all or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from utils import demo_data
from utils.demo import scene as demo_scene
from utils.demo_data import CLASSES, DEFECT_CODES, DEFECTS, DemoSettings, make_sample, write_demo_data
from utils.files import alone_with

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = DemoSettings(seed=3, train=2, validation=1, test_per_kind=1, image_size=96)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "mvtec3d"
    assert write_demo_data(target, SMALL)
    return target


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_layout_is_that_of_mvtec_3d_ad(dataset: Path) -> None:
    expected = {"class_ids.json", "calibration/camera_parameters.json"}
    for folder, count in (("train/good", 2), ("validation/good", 1)):
        expected |= {f"{folder}/rgb/{i:03d}.png" for i in range(count)}
        expected |= {f"{folder}/xyz/{i:03d}.tiff" for i in range(count)}
    for kind in ("good", *DEFECT_CODES):
        expected |= {f"test/{kind}/{name}" for name in ("rgb/000.png", "xyz/000.tiff", "gt/000.png")}
    for name in CLASSES:
        assert set(file_bytes(dataset / name)) == expected


def test_images_are_square_in_one_class_and_not_in_the_other(dataset: Path) -> None:
    sizes = {name: Image.open(dataset / name / "train/good/rgb/000.png").size for name in CLASSES}
    assert sizes == {"bagel": (96, 96), "rope": (144, 96)}


@pytest.mark.parametrize("name", CLASSES)
def test_files_have_the_formats_of_the_real_ones(dataset: Path, name: str) -> None:
    with tifffile.TiffFile(dataset / name / "train/good/xyz/000.tiff") as tiff:
        assert tiff.pages.first.compression == tifffile.COMPRESSION.NONE
        cloud = tiff.asarray()
    rgb = Image.open(dataset / name / "train/good/rgb/000.png")
    gt = Image.open(dataset / name / "test/dent/gt/000.png")
    assert (cloud.dtype, cloud.shape) == (np.float32, (rgb.height, rgb.width, 3))
    assert (rgb.mode, gt.mode, gt.size) == ("RGB", "L", rgb.size)


@pytest.mark.parametrize("name", CLASSES)
def test_ground_truth_holds_the_code_of_the_defect_kind(dataset: Path, name: str) -> None:
    codes = json.loads((dataset / name / "class_ids.json").read_text())
    assert codes == {"255": "bump", "254": "combined", "253": "dent", "252": "stain", "0": "good"}
    for code, kind in codes.items():
        found = np.unique(np.asarray(Image.open(dataset / name / f"test/{kind}/gt/000.png")))
        assert found.tolist() == sorted({0, int(code)})


@pytest.mark.parametrize("name", CLASSES)
def test_every_measured_point_projects_to_its_own_pixel(dataset: Path, name: str) -> None:
    camera = json.loads((dataset / name / "calibration/camera_parameters.json").read_text())
    cloud = tifffile.imread(dataset / name / "train/good/xyz/001.tiff").astype(float)
    rows, columns = np.nonzero(cloud.any(axis=2))
    x, y, z = cloud[rows, columns].T
    focal = camera["focus"] / camera["sx"]
    np.testing.assert_allclose(focal * x / z + camera["cx"], columns, atol=1e-3)
    np.testing.assert_allclose(focal * y / z + camera["cy"], rows, atol=1e-3)


@pytest.mark.parametrize("name", CLASSES)
def test_cloud_looks_like_the_sensors(dataset: Path, name: str) -> None:
    cloud = tifffile.imread(dataset / name / "train/good/xyz/000.tiff")
    measured = (cloud != 0).any(axis=2)
    np.testing.assert_array_equal((cloud != 0).all(axis=2), measured)  # (0, 0, 0), or no 0 at all
    assert 0.2 < 1 - measured.mean() < 0.45
    assert 0.4 < cloud[measured, 2].min() < cloud[measured, 2].max() < 0.6
    border = np.ones_like(measured)
    border[10:-10, 10:-10] = False
    points = cloud[border & measured].astype(float)
    normal = np.linalg.svd(points - points.mean(axis=0))[2][2]
    off_plane = (points - points.mean(axis=0)) @ normal
    assert np.median(np.abs(off_plane)) < 2e-4  # the background is a plane,
    assert abs(normal[2]) < 0.95  # tilted by more than 18 degrees


@pytest.mark.parametrize("name", CLASSES)
def test_the_part_has_over_5000_points_at_the_models_resolution(name: str) -> None:
    cloud = make_sample(name, "good", 400, np.random.default_rng(0)).xyz
    height_above_plane = view_heights(cloud)
    side = -(-max(cloud.shape[:2]) // 100) * 100  # preprocessing pads to this square
    pixels_a_point = (side / 224) ** 2
    assert (height_above_plane > 0.005).sum() / pixels_a_point > 5000


def view_heights(cloud: np.ndarray) -> np.ndarray:
    """Height of each measured point above the background plane, in metres."""
    normal = demo_scene.PLANE_NORMAL / np.linalg.norm(demo_scene.PLANE_NORMAL)
    measured = cloud[(cloud != 0).any(axis=2)].astype(float)
    return (measured - [0, 0, demo_scene.CAMERA_DISTANCE_M]) @ normal


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("kind", "moves", "recolors"), [("bump", 1, 0), ("dent", 1, 0), ("stain", 0, 1), ("combined", 1, 1)]
)
def test_ground_truth_is_where_a_second_rendering_without_the_defect_differs(
    name: str, kind: str, moves: bool, recolors: bool
) -> None:
    rng, height, width = np.random.default_rng(5), 150, round(150 * CLASSES[name].aspect)
    damaged = intact = CLASSES[name].make(rng)
    for add_defect in DEFECTS[kind]:
        damaged = add_defect(damaged, rng)
    before, after = (demo_scene.observe(part, height, width) for part in (intact, damaged))
    moved = np.abs(before.depth - after.depth) > demo_data.DEFECT_OFFSET_M
    colors = [demo_scene.look_up(part.color, after.points) for part in (intact, damaged)]
    recolored = (np.abs(colors[0] - colors[1]) > 0.1).any(axis=0) & after.on_part
    assert (moved.any(), recolored.any()) == (moves, recolors)
    marked = demo_data.defect_pixels(after, intact, damaged)
    different = moved | recolored
    # a depth is longer than the height that it stands for, and a bump hides some of the surface behind it
    assert (marked & different).sum() / (marked | different).sum() > 0.85
    assert 0.001 < marked.mean() < 0.02


def test_good_samples_have_an_empty_ground_truth_and_vary() -> None:
    samples = [make_sample("rope", "good", 64, np.random.default_rng(seed)) for seed in (0, 1)]
    assert not any(sample.gt.any() for sample in samples)
    assert np.abs(samples[0].rgb.astype(int) - samples[1].rgb).mean() > 3


def test_same_settings_give_the_same_bytes_and_another_seed_gives_others(
    dataset: Path, tmp_path: Path
) -> None:
    write_demo_data(tmp_path / "again", SMALL, num_workers=2)
    assert file_bytes(tmp_path / "again") == file_bytes(dataset)
    a, b = (make_sample("bagel", "dent", 64, np.random.default_rng([seed, 1])) for seed in (0, 1))
    assert (a.rgb != b.rgb).any()


def test_a_sample_does_not_depend_on_how_many_others_there_are(dataset: Path, tmp_path: Path) -> None:
    fewer = DemoSettings(seed=3, train=1, validation=0, test_per_kind=1, image_size=96)
    write_demo_data(tmp_path / "fewer", fewer)
    found, full = file_bytes(tmp_path / "fewer"), file_bytes(dataset)
    del found[demo_data.MANIFEST]
    assert found.items() <= full.items()


def test_second_run_with_equal_settings_writes_nothing(dataset: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert not write_demo_data(dataset, SMALL)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == times


def test_a_data_set_of_other_settings_or_a_foreign_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r'"seed": 3.*delete it or name a new folder'):
        write_demo_data(dataset, DemoSettings())
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_demo_data(tmp_path, SMALL)
    assert file_bytes(tmp_path) == {"photo.png": b"mine"}


def test_a_cut_run_leaves_no_data_set_and_the_next_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    settings = DemoSettings(train=1, validation=0, test_per_kind=1, image_size=64)
    with monkeypatch.context() as patch:
        patch.setattr(demo_data, "_camera_parameters", lambda name, _: {} if name == "bagel" else fail())
        with pytest.raises(KeyboardInterrupt):
            write_demo_data(tmp_path / "set", settings)
    assert not (tmp_path / "set").exists()
    assert write_demo_data(tmp_path / "set", settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "set"]


def test_two_runs_at_once_on_one_folder_are_refused(tmp_path: Path) -> None:
    with alone_with(tmp_path / ".set.lock", ""):
        result = run_script(str(tmp_path / "set"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path / 'set'}: another run is writing it; wait for it to end\n"
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_an_error_in_one_line(dataset: Path) -> None:
    flags = [f"--{name}={value}" for name, value in asdict(SMALL).items() if name != "format_version"]
    command = [sys.executable, "-u", str(REPOSITORY / "utils" / "demo_data.py"), str(dataset), *flags]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: [Errno 28] No space left on device\n"


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "utils" / "demo_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_script_refuses_impossible_sizes_in_one_line(tmp_path: Path) -> None:
    result = run_script(str(tmp_path / "set"), "--image_size", "20")
    assert result.returncode == 2
    assert "--image_size 20: is too small, the least is 64" in result.stderr


def test_script_names_the_remedy_when_the_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    result = run_script(str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert "name a new folder" in result.stderr


def test_data_set_is_made_without_importing_torch() -> None:
    code = "import sys, utils.demo_data; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60).returncode == 0
    )
