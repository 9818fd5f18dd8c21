"""Detectors on disk: what is written comes back, and whatever else a file holds is one error that names it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from feature_extractors.decision import LinearScore, OneClassDecision, SumDecision
from feature_extractors.detector import Detector
from feature_extractors.detector_file import (
    METADATA_KEY,
    DetectorFileError,
    Header,
    checksum,
    read_detector,
    read_header,
    write_detector,
)
from feature_extractors.memory_bank.bank import MemoryBank, ScoreRule
from feature_extractors.memory_bank.training_patches import Standardization
from feature_extractors.methods import METHODS
from feature_extractors.settings import Settings
from tests.mutants import mutants
from utils.structures import Patches

CPU = torch.device("cpu")
TWO_BANKS = "DINO+Point_MAE"


def _settings(method: str = TWO_BANKS, **changes) -> Settings:
    return Settings(method, rgb_backbone_name="vit_small_patch8_224_dino", img_size=32, **changes)


def _rows(settings: Settings, source: str, count: int, seed: int) -> torch.Tensor:
    dtype = torch.float64 if settings.xyz_backbone_name == "FPFH" else torch.float32
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, settings.dim(source), generator=generator, dtype=dtype)


def _detector(settings: Settings) -> Detector:
    sources, rule = settings.method.sources, ScoreRule.of(settings)
    banks = {
        source: MemoryBank(_rows(settings, source, 12, i), Standardization(0.1 + i, 1 / 3), rule)
        for i, source in enumerate(sources)
    }
    if settings.method.decision == "sum":
        return Detector(banks, SumDecision())
    svms = [LinearScore(np.arange(1, len(sources) + 1) / k, 0.1) for k in (3, 7)]
    factors = np.full(len(sources), 0.1, np.float32)
    return Detector(banks, OneClassDecision(factors, 2 * factors, *svms))


def _header(settings: Settings) -> Header:
    weights = {"rgb": "dino.pth sha256:12", "xyz": "random, seed 0"}
    return Header(settings.as_dict(), weights, {"torch": "2.9"}, {"train": 3, "xyz_bank_rows": 12})


def _sample(settings: Settings) -> dict[str, Patches]:
    sides = {"rgb": settings.rgb_side, "xyz": settings.xyz_side, "fusion": settings.xyz_side}
    return {
        source: Patches(_rows(settings, source, side * side, 9), torch.arange(side * side), side)
        for source, side in sides.items()
        if source in settings.method.sources
    }


def _assert_equal_scores(first: Detector, second: Detector, settings: Settings) -> None:
    found, expected = (detector.score(_sample(settings)) for detector in (first, second))
    assert found.image == expected.image
    assert found.map.tobytes() == expected.map.tobytes()


@pytest.fixture
def saved(tmp_path) -> Path:
    write_detector(tmp_path / "bagel.m3dm", _detector(_settings()), _header(_settings()))
    return tmp_path / "bagel.m3dm"


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_that_comes_back_gives_byte_equal_scores(method, tmp_path):
    settings, path = _settings(method), tmp_path / "sub" / "bagel.m3dm"
    detector = _detector(settings)
    write_detector(path, detector, _header(settings))
    found, header, found_settings = read_detector(path, CPU)
    _assert_equal_scores(found, detector, settings)
    assert found_settings == settings
    assert dataclasses.replace(header, sha256="") == _header(settings)
    assert read_header(path) == (header, settings)
    assert [p.name for p in path.parent.iterdir()] == ["bagel.m3dm"]


def test_float16_halves_the_rows_and_moves_the_scores_a_little(saved, tmp_path):
    detector, half = _detector(_settings()), tmp_path / "half.m3dm"
    write_detector(half, detector, _header(_settings()), "float16")
    found = read_detector(half, CPU)[0]
    for source, bank in detector.banks.items():
        assert torch.equal(found.banks[source].rows, bank.rows.half())
    exact, rounded = (each.score(_sample(_settings())).image for each in (detector, found))
    assert exact != rounded == pytest.approx(exact, rel=1e-2)
    assert half.stat().st_size < 0.6 * saved.stat().st_size


def test_rows_beyond_float16_are_refused_and_the_file_that_is_there_stays(saved):
    before, detector = saved.read_bytes(), _detector(_settings())
    detector.banks["xyz"].rows[3, 5] = 1e5
    with pytest.raises(ValueError, match="do not fit float16"):
        write_detector(saved, detector, _header(_settings()), "float16")
    assert saved.read_bytes() == before


def _rewrite(path: Path, *, header=None, without="", tensors=None, sign=True) -> None:
    """Change fields of the header, or leave one out, and tensors; the checksum follows where it should."""
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()[METADATA_KEY])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    held = {name: value for name, value in {**held, **(tensors or {})}.items() if name != without}
    values = {name: value for name, value in {**values, **(header or {})}.items() if name != without}
    if sign:
        values["sha256"] = checksum(values, held)
    save_file(held, path, {METADATA_KEY: json.dumps(values)})


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _foreign(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, path, metadata)


DAMAGE = {
    "missing": (Path.unlink, "no such file; fit a detector and save it"),
    "empty": (lambda p: p.write_bytes(b""), "cut off or damaged"),
    "not safetensors": (lambda p: p.write_bytes(b"<html>quota exceeded</html>"), "no detector file"),
    "a torch file": (lambda p: torch.save({"a": torch.zeros(3)}, p), "no detector file"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:300]), "cut off or damaged"),
    "cut in the rows": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cut off or damaged"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "cut off or damaged"),
    "a flipped bit": (lambda p: _flip(p, -3), "it does not hold what was written"),
    "foreign": (lambda p: _foreign(p, None), "is a safetensors file, but none of a detector"),
    "foreign, with metadata": (lambda p: _foreign(p, {"format": "pt"}), "none of a detector"),
    "header of another kind": (lambda p: _foreign(p, {METADATA_KEY: "[1]"}), "is a list"),
    "header that is no JSON": (lambda p: _foreign(p, {METADATA_KEY: "{"}), "cut off or damaged"),
    "newer": (lambda p: _rewrite(p, header={"format_version": 99}), "format 99, newer than the 1"),
    "older": (lambda p: _rewrite(p, header={"format_version": 0}), "format 'm3dm-detector' 0"),
    "another format": (lambda p: _rewrite(p, header={"format": "x"}), "format 'x' 1"),
    "a field less": (lambda p: _rewrite(p, without="counts"), "has no field 'counts'"),
    "a field more": (lambda p: _rewrite(p, header={"mood": 1}), "'mood' that is not known"),
    "a field of another type": (lambda p: _rewrite(p, header={"weights": [1]}), r"weights is \[1\]"),
    "unknown settings": (
        lambda p: _rewrite(p, header={"settings": {"seed": 0}}),
        "or thresholds are not known",
    ),
    "impossible settings": (
        lambda p: _rewrite(p, header={"settings": {**_settings().as_dict(), "f_coreset": 5}}),
        "--f_coreset 5 must be a share",
    ),
    "a tensor less": (lambda p: _rewrite(p, without="bank.rgb.rows"), "bank.rgb.rows"),
    "a tensor more": (
        lambda p: _rewrite(p, tensors={"bank.touch.rows": torch.zeros(3)}),
        "has: bank.touch.rows",
    ),
    "other dims": (
        lambda p: _rewrite(p, tensors={"bank.rgb.rows": torch.zeros(9, 768)}),
        "bank rgb has 768 dims, its backbones give 384",
    ),
    "rows of whole numbers": (
        lambda p: _rewrite(p, tensors={"bank.rgb.rows": torch.zeros(9, 384, dtype=torch.int64)}),
        "of torch.int64",
    ),
    "rows with NaN": (
        lambda p: _rewrite(p, tensors={"bank.rgb.rows": torch.full((9, 384), torch.nan)}),
        "NaN or infinite",
    ),
    "too few rows": (
        lambda p: _rewrite(p, tensors={"bank.rgb.rows": torch.zeros(2, 384)}),
        "a memory bank of 2 rows",
    ),
    "std 0": (
        lambda p: _rewrite(p, tensors={"bank.rgb.standardization": torch.zeros(2)}),
        r"scalars \[0.0, 0.0\]",
    ),
    "a decision with NaN": (
        lambda p: _rewrite(p, tensors={"decision.pixel": torch.full((5,), torch.nan)}),
        "not finite",
    ),
    "a decision for three": (
        lambda p: _rewrite(p, tensors={"decision.image": torch.ones(7)}),
        r"a decision of \(7,\) for 2 banks",
    ),
    "checksum of other tensors": (
        lambda p: _rewrite(p, tensors={"bank.rgb.rows": torch.zeros(9, 384)}, sign=False),
        "it does not hold what was written",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_intact_detector_is_one_error_that_names_the_file_and_what_does_not_fit(saved, damage):
    spoil, message = DAMAGE[damage]
    spoil(saved)
    with pytest.raises(DetectorFileError, match=message) as error:
        read_detector(saved, CPU)
    assert str(error.value).startswith(f"{saved}: ")
    assert str(error.value).count(str(saved)) == 1
    assert "\n" not in str(error.value)


def _errors_of(path: Path, contents: Iterable[bytes]) -> list[str]:
    """Why contents were refused; those that were not give the detector that was written."""
    errors, detector = [], _detector(_settings())
    for content in contents:
        path.write_bytes(content)
        try:
            found, header, settings = read_detector(path, CPU)
        except DetectorFileError as error:
            errors.append(str(error))
        else:
            _assert_equal_scores(found, detector, _settings())
            assert settings == _settings()
            assert dataclasses.replace(header, sha256="") == _header(_settings())
    return errors


def test_mutants_of_a_file_are_one_error_or_the_detector_that_was_written(saved):
    errors = _errors_of(saved, mutants(saved.read_bytes(), 300))
    assert len(errors) > 250
    assert all(error.startswith(f"{saved}: ") for error in errors)


def test_a_flipped_bit_in_the_header_is_noticed(saved):
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    flipped = (content[:i] + bytes([content[i] ^ 1 << i % 7]) + content[i + 1 :] for i in range(0, header, 5))
    errors = _errors_of(saved, flipped)
    assert len(errors) > header // 10
