"""report.html: well-formed, self-contained, honest about what is missing, and safe with any class name."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import trapezoid

from tests.html_reader import HOSTILE, Reader
from utils.image_files import write_png
from utils.metrics import Predictions, measure, roc_auc, roc_curve
from utils.report.charts import histogram
from utils.report.figures import (
    CASES,
    HIGHEST_DEFECTS,
    HIGHEST_GOOD,
    LOWEST_DEFECTS,
    ClassFigures,
    collect,
    read_figures,
    write_figures,
)
from utils.report.page import difference
from utils.report.run_report import MEANINGLESS, run_page, write_report
from utils.reporting import write_scores
from utils.structures import SampleFiles, Thresholds

SIDE = 16
THRESHOLDS = Thresholds(image=0.5, pixel=0.8, origin="max of 12 good parts")


def _files(root: Path, kinds: dict[str, int | None], each: int) -> list[SampleFiles]:
    files = []
    for kind, label in kinds.items():
        for i in range(each):
            path = f"test/{kind}/rgb/{i:03d}.png"
            write_png(root / path, np.full((20, 30, 3), 90, np.uint8))
            files.append(SampleFiles(root / path, root / path, None, label, path))
    return files


def _write_class(
    results: Path, name: str, kinds: dict[str, int | None], each: int = 6, thresholds=None
) -> dict:
    """Scores and figures of a class, as main.py leaves them; returns its entry in results.json."""
    files = _files(results.parent / "data", kinds, each)
    rng = np.random.default_rng(0)
    scores, maps = rng.random(len(files)), rng.random((len(files), SIDE, SIDE)).astype(np.float32)
    known = [i for i, of_sample in enumerate(files) if of_sample.label is not None]
    labels = np.array([files[i].label for i in known], dtype=int)
    masks = np.zeros((len(known), SIDE, SIDE), dtype=bool)
    masks[labels == 1, 4:8, 4:8] = True
    predictions = Predictions(labels, scores[known], masks, maps[known])
    write_scores(results, name, [(f.path, f.label, s) for f, s in zip(files, scores.tolist(), strict=True)])
    write_figures(results, name, collect(files, scores, maps, predictions, thresholds))
    return {
        **measure(predictions),
        "seconds": {"extract_train": 1.5, "predict": 2.0},
        "memory_mb": {"extract_train": 900.0, "predict": None},
        "peak_memory_mb": 1000.0,
        "counts": {"train": 3, "test": len(files)},
        "remarks": [],
        "skipped_samples": [],
    }


def _record(classes: dict[str, dict], **changes) -> dict:
    return {
        "method_name": "DINO+Point_MAE+Fusion",
        "random_weights": False,
        "weights": {"rgb": "dino.pth sha256:0"},
        "settings": {"max_sample": 8, "seed": 0, "quirks": {"blur": "float"}},
        "dataset_path": "data",
        "device": "cpu",
        "versions": {"python": "3.10"},
        "complete": True,
        "classes": classes,
        "failed_classes": {},
        **changes,
    }


DEFAULTS = {"max_sample": 400, "seed": 0, "quirks": {"blur": "pil_8bit"}}
KINDS = {"good": 0, "bump": 1, "dent": 1}


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def page(results) -> str:
    """Of two classes, one with a threshold, of a run with random weights in which a class failed."""
    classes = {
        "bagel": _write_class(results, "bagel", KINDS, thresholds=THRESHOLDS),
        "rope": _write_class(results, "rope", KINDS),
    }
    record = _record(classes, random_weights=True, failed_classes={"tire": "no training sample can be used"})
    return run_page(results, record, DEFAULTS)


def test_every_tag_is_closed_and_nothing_comes_from_elsewhere(page):
    reader = Reader(page)
    assert reader.open == []
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert {address.split(",")[0] for address in reader.addresses} == {
        "#class-0",
        "#class-1",
        "data:image/jpeg;base64",
    }
    assert not re.search(r"url\(|@import|https?://|file:", page)


def test_random_weights_are_said_before_any_figure_and_what_failed_is_named(page):
    text = Reader(page).text
    assert text.index(MEANINGLESS) < text.index("Results")
    assert text.index("tire: failed: no training sample can be used") < text.index("Results")


def test_trained_weights_bring_no_warning(results):
    record = _record({"bagel": _write_class(results, "bagel", KINDS)})
    assert 'class="warning' not in run_page(results, record, DEFAULTS)


def test_our_figures_stand_beside_the_published_ones_and_their_difference(results):
    entry = {**_write_class(results, "bagel", KINDS), "image_rocauc": 0.984}
    text = Reader(run_page(results, _record({"bagel": entry}), DEFAULTS)).text
    assert "Image ROCAUC here published diff. bagel 0.984 0.994 −0.010 Mean 0.984 0.994 −0.010" in text
    assert "arXiv 2303.00601" in text


def test_a_class_nobody_has_published_has_no_difference_nor_has_the_mean(results):
    classes = {name: {**_write_class(results, name, KINDS), "au_pro": 0.5} for name in ("bagel", "my_part")}
    text = Reader(run_page(results, _record(classes), DEFAULTS)).text
    assert "my_part 0.500 – – Mean 0.500 – –" in text


def test_a_method_nobody_has_published_says_so(results):
    record = _record({"bagel": _write_class(results, "bagel", KINDS)}, method_name="FPFH+other")
    assert "No published figures of this method" in Reader(run_page(results, record, DEFAULTS)).text


def test_difference_is_that_of_the_printed_figures():
    assert difference(0.9004, 0.900) == difference(0.8996, 0.900)
    assert (difference(0.9016, 0.9).text, difference(0.8984, 0.9).text) == ("+0.002", "−0.002")
    assert difference(None, 0.9).text == difference(0.9, None).text == "–"


def test_a_class_without_labels_shows_scores_and_no_metrics(results):
    record = _record({"own": _write_class(results, "own", {"unknown": None})})
    reader = Reader(run_page(results, record, DEFAULTS))
    assert "own n/a – – Mean n/a – –" in reader.text
    assert "not known" in reader.text
    assert "The highest scores" in reader.text
    assert reader.open == []
    assert reader.tags.count("svg") == 1  # the histogram; no curve


def test_a_class_without_test_samples_shows_nothing_of_an_earlier_run(results):
    entry = {**_write_class(results, "bagel", KINDS), "counts": {"train": 3}}
    page = run_page(results, _record({"bagel": entry}), DEFAULTS)
    assert "fitted, not evaluated" in page
    assert "<img" not in page


def test_hostile_names_stay_text(results):
    entry = _write_class(results, "bagel", KINDS)
    entry["skipped_samples"] = [{"path": HOSTILE, "reason": HOSTILE}]
    record = _record({HOSTILE: entry}, dataset_path=HOSTILE, failed_classes={HOSTILE: HOSTILE})
    page = run_page(results, record, {})
    reader = Reader(page)
    assert "<script" not in page
    assert reader.open == []
    assert reader.text.count("alert('x')") >= 5


def test_the_same_results_give_the_same_bytes(results):
    record = _record({"bagel": _write_class(results, "bagel", KINDS)})
    first = write_report(results, record, DEFAULTS).read_bytes()
    again = _record({"bagel": _write_class(results, "bagel", KINDS)})
    assert write_report(results, again, DEFAULTS).read_bytes() == first


@pytest.mark.parametrize("content", [None, "", "[]", '{"curves": {}}', '{"curves": 1}', "x"])
def test_figures_that_are_gone_or_damaged_leave_a_page_that_says_so(results, content):
    record = _record({"bagel": _write_class(results, "bagel", KINDS)})
    path = results / "report" / "bagel.json"
    path.unlink() if content is None else path.write_text(content)
    assert "no curves and no pictures" in run_page(results, record, DEFAULTS)


@pytest.mark.parametrize("name", ["curves", "kinds", "cases", "limits", "thresholds"])
def test_figures_of_another_type_are_not_taken(results, name):
    _write_class(results, "bagel", KINDS, thresholds=THRESHOLDS)
    values = json.loads((results / "report" / "bagel.json").read_text())
    assert isinstance(ClassFigures.from_dict(values), ClassFigures)
    for wrong in ("x", [{"name": 1}], {"image": "x"}):
        with pytest.raises(ValueError, match=r"is |has "):
            ClassFigures.from_dict({**values, name: wrong})


def test_settings_that_are_not_the_defaults_are_shown_apart(results):
    page = run_page(results, _record({}), DEFAULTS)
    changed = Reader(page).text.split("Settings that are not the defaults")[1].split("Run and weights")[0]
    assert changed.split() == ["max_sample", "8", "blur", "float"]


def test_extremes_are_the_worst_misses_false_alarms_and_best_finds(results):
    _write_class(results, "bagel", KINDS, each=10)
    figures = read_figures(results, "bagel")
    with (results / "scores" / "bagel.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_label = {
        label: sorted((float(row["score"]), row["path"]) for row in rows if row["label"] == label)
        for label in "01"
    }
    shown = {
        group: [case.name for case in figures.cases if case.group == group] for group in _groups(figures)
    }
    assert shown == {
        LOWEST_DEFECTS: [path for _, path in by_label["1"][:CASES]],
        HIGHEST_GOOD: [path for _, path in by_label["0"][::-1][:CASES]],
        HIGHEST_DEFECTS: [path for _, path in by_label["1"][::-1][:CASES]],
    }


def test_no_sample_is_shown_twice_where_there_are_few(results):
    for each in (1, 2, 3):
        _write_class(results, "bagel", {"good": 0, "bump": 1}, each=each)
        names = [case.name for case in read_figures(results, "bagel").cases]
        assert len(names) == len(set(names))


def test_kinds_are_measured_each_among_all_good_samples(results):
    files = _files(results, KINDS, 2)
    scores = np.array([0.1, 0.2, 0.3, 0.15, 0.9, 0.05])  # good, bump, dent
    maps = np.tile(scores[:, None, None], (1, 4, 4)).astype(np.float32)
    labels = np.array([0, 0, 1, 1, 1, 1])
    predictions = Predictions(labels, scores, None, maps)
    kinds = {kind.name: kind for kind in collect(files, scores, maps, predictions, THRESHOLDS).kinds}
    assert kinds["bump"].metrics["image_rocauc"] == 0.75
    assert kinds["dent"].metrics["image_rocauc"] == 0.5
    assert kinds["dent"].metrics["au_pro"] is None
    assert kinds["good"].metrics == {}
    assert {name: kind.above for name, kind in kinds.items()} == {"good": 0, "bump": 0, "dent": 1}


def test_area_under_the_drawn_roc_curve_is_the_metric():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60).astype(float)  # with ties
    ranking = Predictions(labels, scores, None, np.zeros((60, 1, 1), np.float32)).image_ranking
    curve = roc_curve(ranking)
    assert trapezoid(curve.y, curve.x) == pytest.approx(roc_auc(ranking))


def test_equal_scores_make_one_bar():
    chart = histogram("x", {"good": [0.25, 0.25]}, threshold=0.25)
    assert chart.count("<rect") == 1
    assert "nan" not in chart


def _groups(figures: ClassFigures) -> set[str]:
    return {case.group for case in figures.cases}
