"""Before preprocessing writes anything: the unit of the points, data that were preprocessed before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.reference.preprocessing import make_scene
from utils.image_files import read_xyz, write_png, write_xyz
from utils.preprocess.driver import Summary
from utils.preprocess.record import RECORD_NAME, RecordError
from utils.preprocess.sample import Parameters
from utils.preprocessing import Unit, main, preprocess_dataset, spread

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
    _command(monkeypatch, root, "--unit", "mm")
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
        _run(root)


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


def test_a_class_of_which_nothing_is_left_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _dataset(tmp_path / "data", scale=1000)
    assert _command(monkeypatch, root, "--unit", "m") == 1
    assert "failed: bagel: 3 of 3 samples show no part" in capsys.readouterr().err
