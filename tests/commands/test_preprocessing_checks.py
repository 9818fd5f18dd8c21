"""Before preprocessing writes anything: the unit of the points, data that were preprocessed before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.reference.preprocessing import make_scene
from utils.image_files import read_rgb, read_xyz, write_png, write_xyz
from utils.preprocess.driver import Summary
from utils.preprocess.record import RECORD_NAME, RecordError
from utils.preprocess.sample import Parameters, pad_to_square
from utils.preprocessing import Unit, main, preprocess_dataset, spread

ROOT = Path(__file__).parents[2]
XYZ = "bagel/train/good/xyz"


def _dataset(root: Path, scale: float = 1.0, samples: int = 3, name: str = "bagel") -> Path:
    for number in range(samples):
        cloud, image, _ = make_scene(60, 95, np.random.default_rng(number))
        folder = root / name / "train/good"
        write_xyz(folder / f"xyz/{number:03}.tiff", cloud * np.float32(scale))
        write_png(folder / f"rgb/{number:03}.png", image)
    return root


def _run(root: Path, target: Path | None = None, unit: Unit | None = None, force: bool = False) -> Summary:
    return preprocess_dataset(root, target or root, Parameters(), 1, unit, force, progress=False)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["preprocessing.py", *map(str, arguments), "--num_workers", "1"])
    return main()


def test_millimetres_give_the_result_of_metres(tmp_path: Path) -> None:
    in_metres, in_millimetres = _dataset(tmp_path / "m"), _dataset(tmp_path / "mm", scale=1000)
    assert _run(in_metres).reports.keys() == _run(in_millimetres).reports.keys()
    for number in range(3):
        expected, cloud = (read_xyz(root / f"{XYZ}/{number:03}.tiff") for root in (in_metres, in_millimetres))
        np.testing.assert_array_equal(cloud.any(axis=2), expected.any(axis=2))
        np.testing.assert_allclose(cloud, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("scale", "said"), [(1, "points in metres\n"), (1000, "points in millimetres, converted to metres\n")]
)
def test_the_unit_is_said_and_recorded(
    scale: float,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = _dataset(tmp_path / "data", scale)
    assert _command(monkeypatch, root) == 0
    assert said in capsys.readouterr().out
    assert json.loads((root / RECORD_NAME).read_text().splitlines()[0])["unit"] == {1: "m", 1000: "mm"}[scale]


def test_an_uncertain_unit_stops_before_anything_is_written_and_the_flag_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _dataset(tmp_path / "data", scale=10)
    before = _contents(root)
    assert _command(monkeypatch, root) == 1
    assert f"error: {root}: the unit can't be told from a median distance of 6" in (
        error := capsys.readouterr().err
    )
    assert "--unit m or --unit mm" in error
    assert _contents(root) == before
    assert _command(monkeypatch, root, "--output_dir", tmp_path / "copy") == 1
    assert not (tmp_path / "copy").exists()
    distances = {"plane_distance": 4e-5, "background_distance": 5e-5, "cluster_eps": 6e-5}
    flags = [text for name, value in distances.items() for text in (f"--{name}", value)]
    assert _command(monkeypatch, root, "--unit", "mm", *flags) == 0
    assert read_xyz(root / f"{XYZ}/000.tiff").max() < 0.01


def test_classes_in_different_units_are_not_mixed(tmp_path: Path) -> None:
    root = _dataset(_dataset(tmp_path / "data"), scale=1000, name="rope", samples=40)
    with pytest.raises(ValueError, match="clouds in metres and in millimetres"):
        _run(root)


def test_a_repeated_run_keeps_the_recorded_unit(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "data", scale=1000)
    broken = root / XYZ / "001.tiff"
    raw = broken.read_bytes()
    broken.write_bytes(b"")
    assert (_run(root).done, _run(root).done, len(_run(root).errors)) == (2, 0, 1)
    with pytest.raises(RecordError, match=r"unit mm \(now m\)"):
        _run(root, unit="m")
    broken.write_bytes(raw)
    assert (_run(root).done, _run(root).done_before) == (1, 3)


def test_a_record_from_before_units_means_metres(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "data")
    _run(root)
    record = root / RECORD_NAME
    record.write_text(record.read_text().replace(', "unit": "m"', ""))
    assert (_run(root).done, _run(root).done_before) == (0, 3)
    _dataset(root, scale=1000, name="rope")
    with pytest.raises(RecordError, match=r"unit m \(now mm\)"):
        _run(root, unit="mm")
    assert all("which is not in metres" in error for error in _run(root).errors)


def test_preprocessed_data_without_a_record_are_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _dataset(tmp_path / "data")
    _run(root)
    (root / RECORD_NAME).unlink()
    before = _contents(root)
    assert _command(monkeypatch, root) == 1
    assert "3 of 3 samples looked at are square without background" in capsys.readouterr().err
    assert _contents(root) == before
    assert _command(monkeypatch, root, "--force") == 0
    after = _contents(root)
    assert {name: after[name] for name in before} == before


def test_the_look_falls_on_every_class() -> None:
    names = [f"{name}/train/good/{i:03}" for name, count in (("a", 300), ("b", 2)) for i in range(count)]
    chosen = spread(names)
    assert [sum(name.startswith(letter) for name in chosen) for letter in "ab"] == [16, 2]
    assert len(set(chosen)) == len(chosen)
    assert len(spread([f"{i}/train/good/{k}" for i in range(20) for k in range(9)])) == 60


def _scale(path: Path, factor: float) -> None:
    write_xyz(path, read_xyz(path) * np.float32(factor))


def _hide(path: Path) -> None:
    write_xyz(path, np.zeros_like(read_xyz(path)))


def _part_of_one_point(path: Path) -> None:
    cloud = read_xyz(path)
    cloud[10:-10, 10:-10] = 0
    cloud[30, 45] = (0.01, 0.01, 0.5)
    write_xyz(path, cloud)


def _preprocess_before(path: Path) -> None:
    cloud = read_xyz(path)
    cloud[:10] = cloud[-10:] = cloud[:, :10] = cloud[:, -10:] = 0
    write_xyz(path, pad_to_square(cloud))
    rgb = path.parents[1] / f"rgb/{path.stem}.png"
    write_png(rgb, pad_to_square(read_rgb(rgb)))


@pytest.mark.parametrize("into_a_copy", [False, True])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (partial(_scale, factor=1000), "which is not in metres; convert it to metres"),
        (_hide, "it shows no part (no points: nothing measured)"),
        (_part_of_one_point, "it shows no part (mostly scattered points"),
        (_preprocess_before, "as after preprocessing; restore the original file, or add --force"),
    ],
)
def test_a_sample_that_nobody_looked_at_is_checked_before_it_is_written(
    spoil: Callable[[Path], None],
    said: str,
    into_a_copy: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, target = _dataset(tmp_path / "data", samples=4), tmp_path / ("copy" if into_a_copy else "data")
    spoil(root / XYZ / "001.tiff")
    before = _contents(root)
    monkeypatch.setattr("utils.preprocessing.spread", lambda names: names[::2])
    for done_before in (0, 3):
        assert _command(monkeypatch, root, "--output_dir", target) == 1
        captured = capsys.readouterr()
        assert f"done now {3 - done_before}, done before {done_before}, failed 1" in captured.out
        [error] = [line for line in captured.err.splitlines() if line.startswith("failed: ")]
        assert "train/good/" in error
        assert "001" in error
        assert said in error
    after = _contents(target)
    for name in (name for name in before if "001." in name):
        assert after.get(name) == (None if into_a_copy else before[name])


def test_metres_among_millimetres_are_named_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _dataset(tmp_path / "data", scale=1000)
    _scale(root / XYZ / "001.tiff", 1e-3)
    before = _contents(root)
    monkeypatch.setattr("utils.preprocessing.spread", lambda names: names[::2])
    [error] = _run(root).errors
    assert "001.tiff: has a median distance of 0.6" in error
    assert _contents(root)[f"{XYZ}/001.tiff"] == before[f"{XYZ}/001.tiff"]


def test_a_cut_run_on_a_mixture_of_units_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _dataset(tmp_path / "data", samples=5)
    raw = {name: (root / XYZ / f"{name}.tiff").read_bytes() for name in ("003", "004")}
    with monkeypatch.context() as patch:
        patch.setattr("utils.preprocessing.find_samples", lambda _: ["bagel/train/good/000"])
        assert _run(root).done == 1
    for number in ("001", "002", "003"):
        _scale(root / XYZ / f"{number}.tiff", 1000)
    summary = _run(root)
    assert (summary.done, summary.done_before, len(summary.errors)) == (1, 1, 3)
    (root / XYZ / "003.tiff").write_bytes(raw["003"])
    assert (_run(root).done, len(_run(root).errors)) == (1, 2)


def test_a_sample_that_was_written_without_its_part_in_a_former_version_is_an_error(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "data")
    _run(root)
    header, first, *others = (root / RECORD_NAME).read_text().splitlines()
    entry = json.loads(first)
    entry["report"]["odd"] = {"no points": "nothing measured"}
    (root / RECORD_NAME).write_text("\n".join([header, json.dumps(entry), *others, ""]))
    assert _run(root).errors == [
        f"bagel/train/good/000: was written without its part (no points: nothing measured); unpack its original files, "
        f"delete its line in {RECORD_NAME} and run again"
    ]


def test_a_class_that_can_be_reached_twice_is_refused_in_place_and_two_classes_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, copy = _dataset(tmp_path / "data"), tmp_path / "copy"
    (root / "bagel2").symlink_to("bagel")
    before = _contents(root)
    assert _command(monkeypatch, root) == 1
    assert capsys.readouterr().err == (
        f"error: {root}/bagel/train/good/xyz/000.tiff and {root}/bagel2/train/good/xyz/000.tiff are the same file, "
        "by a link: one would be written over the other; remove the link\n"
    )
    assert _contents(root) == before
    assert _run(root, copy).done == 6
    for kind in ("xyz/000.tiff", "rgb/000.png"):
        assert (copy / f"bagel2/train/good/{kind}").read_bytes() == (
            copy / f"bagel/train/good/{kind}"
        ).read_bytes()


def test_a_linked_sample_is_not_preprocessed_twice_and_a_copy_never_writes_to_the_originals(
    tmp_path: Path,
) -> None:
    root, copy = _dataset(tmp_path / "data"), tmp_path / "copy"
    copy.mkdir()
    (copy / "bagel").symlink_to(root / "bagel")
    before = _contents(root)
    with pytest.raises(ValueError, match="are the same file, by a link"):
        _run(root, copy)
    (root / XYZ / "003.tiff").symlink_to("000.tiff")
    with pytest.raises(ValueError, match=r"000.tiff and .*003.tiff are the same file, by a link"):
        _run(root)
    (root / XYZ / "003.tiff").unlink()
    assert _contents(root) == before


def test_a_source_that_changed_is_preprocessed_anew_and_what_is_gone_is_named(tmp_path: Path) -> None:
    root, copy, expected = _dataset(tmp_path / "data"), tmp_path / "copy", tmp_path / "expected"
    _run(root, copy)
    for kind, suffix in (("xyz", "tiff"), ("rgb", "png")):
        folder = root / f"bagel/train/good/{kind}"
        (folder / f"000.{suffix}").unlink()
        (folder / f"002.{suffix}").replace(folder / f"001.{suffix}")
    (root / "LICENSE").write_text("new")
    _run(root, expected)
    summary = _run(root, copy)
    assert (summary.done, summary.done_before) == (1, 0)
    assert [error.split(", which")[0] for error in summary.errors] == [
        f"{copy}: holds bagel/train/good/{number}" for number in ("000", "002")
    ]
    found = _contents(copy)
    assert {name: found[name] for name in _contents(expected) if name != RECORD_NAME} == {
        name: content for name, content in _contents(expected).items() if name != RECORD_NAME
    }


def test_a_class_of_another_source_stays_in_the_copy_and_a_missing_result_is_made_anew(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    _run(_dataset(tmp_path / "other", name="rope"), copy)
    root = _dataset(tmp_path / "data")
    assert (_run(root, copy).done, _run(root, copy).errors) == (3, [])
    before = _contents(copy)
    for path in copy.glob("bagel/train/good/*/001.*"):
        path.unlink()
    assert (_run(root, copy).done, _run(root, copy).done) == (1, 0)
    after = _contents(copy)
    assert {name: after[name] for name in before if name != RECORD_NAME} == {
        name: before[name] for name in before if name != RECORD_NAME
    }


def test_other_files_are_copied_again_when_they_changed(tmp_path: Path) -> None:
    root, copy = _dataset(tmp_path / "data"), tmp_path / "copy"
    (root / "LICENSE").write_text("old")
    _run(root, copy)
    os.utime(root / "LICENSE", ns=(1, 10**18))
    (root / "LICENSE").write_text("new")
    _run(root, copy)
    assert (copy / "LICENSE").read_text() == "new"


def test_an_original_put_back_in_place_is_noticed_though_it_has_the_size_of_the_result(
    tmp_path: Path,
) -> None:
    root = _dataset(tmp_path / "data")
    for kind, read, write, suffix in (
        ("xyz", read_xyz, write_xyz, "tiff"),
        ("rgb", read_rgb, write_png, "png"),
    ):
        path = root / f"bagel/train/good/{kind}/001.{suffix}"
        write(path, np.ascontiguousarray(np.resize(read(path), (100, 100, 3))))
    cloud, image, _ = make_scene(100, 100, np.random.default_rng(1))
    write_xyz(root / XYZ / "001.tiff", cloud)
    write_png(root / "bagel/train/good/rgb/001.png", image)
    shutil.copy2(root / XYZ / "001.tiff", tmp_path / "001.tiff")
    _run(root)
    assert (root / XYZ / "001.tiff").stat().st_size == (tmp_path / "001.tiff").stat().st_size
    shutil.copy2(tmp_path / "001.tiff", root / XYZ / "001.tiff")
    with pytest.raises(RecordError, match=r"001.tiff: missing or changed since it was preprocessed"):
        _run(root)


@pytest.mark.skipif(sys.platform != "linux", reason="names here may be any bytes")
def test_a_file_name_that_is_no_utf8_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, name = _dataset(tmp_path / "data"), os.fsdecode(b"M\374ller")
    for kind, suffix in (("xyz", "tiff"), ("rgb", "png")):
        path = root / f"bagel/train/good/{kind}/001.{suffix}"
        path.replace(path.with_name(f"{name}.{suffix}"))
    assert (_run(root).done, _run(root).done_before) == (3, 3)
    (root / "bagel/train/good/xyz" / f"{name}2.tiff").write_bytes(b"")
    assert _command(monkeypatch, root) == 1
    assert "M\\udcfcller2.tiff: is no readable tiff but empty" in capsys.readouterr().err


def test_a_closed_stderr_is_no_trouble(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "data")
    command = 'exec "$0" utils/preprocessing.py "$1" --num_workers 2 2>&-'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable, root], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.returncode, "done now 3, done before 0, failed 0" in result.stdout) == (0, True)
