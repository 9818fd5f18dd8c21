"""report.html as the commands write it."""

from __future__ import annotations

from pathlib import Path

import pytest

import predict
from tests.conftest import write_class
from tests.tiny_runs import run_main
from utils.report.parts_report import MAP_COLORS
from utils.report.parts_report import MEANINGLESS as VERDICTS_MEANINGLESS
from utils.report.run_report import MEANINGLESS


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A folder with data, results and a detector that has a threshold."""
    root = tmp_path_factory.mktemp("ran")
    write_class(root / "data", "bagel", train=4)
    saving = ["--save_detector", str(root / "detectors"), "--holdout", "0.5"]
    assert run_main(root / "data", root / "results", "Point_MAE", *saving) == 0
    return root


def test_main_writes_a_report_with_curves_threshold_and_pictures(ran):
    page = (ran / "results" / "report.html").read_text(encoding="utf-8")
    assert MEANINGLESS in page
    assert page.count("<svg") == 4
    assert "max of 2 good parts (held-out training parts)" in page
    assert page.count("<img") == 4  # two good samples, two defects


def test_predict_writes_a_report_with_pictures_of_the_parts(ran, capsys):
    test = str(ran / "data" / "bagel" / "test")
    flags = ["--preprocessed", "--random_weights", "--device", "cpu", "--output", str(ran / "out")]
    assert predict.main(["--detector", str(ran / "detectors" / "bagel.m3dm"), "--input", test, *flags]) == 0
    assert f"report: {ran / 'out' / 'report.html'}" in capsys.readouterr().out
    page = (ran / "out" / "report.html").read_text(encoding="utf-8")
    assert VERDICTS_MEANINGLESS in page
    assert page.count("<img") == 4
    assert "4 parts: " in page
    assert MAP_COLORS in page
