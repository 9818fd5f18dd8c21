"""The report of predict.py."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.html_reader import HOSTILE, Reader
from utils.report.parts_report import MAP_COLORS, NO_THRESHOLD, write_parts_report
from utils.structures import Thresholds

THRESHOLDS = Thresholds(image=0.5, pixel=0.8, origin="max of 12 good parts")
ROWS = (
    ("a/1", "0.9", "0.9", "0.5", "anomalous", "12", ""),
    (HOSTILE, "0.1", "0.1", "0.5", "good", "11", ""),
    ("b/2", "", "", "", "", "10", "is damaged"),
)


@pytest.fixture
def folder(tmp_path) -> Path:
    header = ("part", "score", "calibrated", "threshold", "verdict", "milliseconds", "problem")
    with (tmp_path / "report.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *ROWS])
    return tmp_path


def test_page_is_well_formed_and_names_what_was_not_judged(folder):
    about = {"Versions": {"python": HOSTILE}}
    path = write_parts_report(folder, "x.m3dm", about, THRESHOLDS, [0.2, 0.5], lambda name: "AAAA")
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    assert reader.open == []
    assert "<script" not in page
    assert "b/2: not judged: is damaged" in reader.text
    assert "3 parts: 1 anomalous, 1 good, 1 not judged; 10 ms a part" in reader.text
    assert reader.addresses == ["data:image/jpeg;base64,AAAA"] * 2
    assert "score 0.9, threshold 0.5: anomalous" in reader.text
    assert MAP_COLORS not in reader.text  # each map has its own


def test_no_threshold_and_random_weights_are_said_on_top(folder):
    path = write_parts_report(folder, "x.m3dm", {}, None, [], lambda name: None, random_weights=True)
    text = Reader(path.read_text(encoding="utf-8")).text
    assert text.index("Random weights") < text.index(NO_THRESHOLD) < text.index("Scores")


def test_a_report_of_no_part_is_a_page(folder):
    (folder / "report.csv").write_text("part,score,verdict,milliseconds,problem\n")
    path = write_parts_report(folder, "x.m3dm", {}, None, [], lambda name: None)
    assert "0 parts" in Reader(path.read_text(encoding="utf-8")).text
