"""The published figures: one file, from which the report and the documents take them."""

from pathlib import Path

import pytest

from feature_extractors.methods import METHODS
from utils.class_names import MVTEC3D_CLASSES
from utils.metrics import METRICS
from utils.report.published import (
    MEAN,
    all_classes,
    counterpart,
    markdown_table,
    mean_of,
    names,
    of_method,
    published_figures,
    value_of,
)

ROOT = Path(__file__).parent.parent.parent
FULL = "DINO+Point_MAE+Fusion"


def test_the_table_in_the_documents_is_that_of_the_data():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert markdown_table() in text


def _row(name):
    return [figure for figure in published_figures() if figure.name == name]


def test_every_figure_is_of_a_metric_of_ours_and_names_its_source():
    places = [(f.name, f.metric, f.class_name) for f in published_figures()]
    assert len(set(places)) == len(places)
    assert {f.method_name for f in published_figures()} - {""} <= set(METHODS)
    assert {metric for _, metric, _ in places} <= {metric.key for metric in METRICS}
    assert {f.class_name for f in published_figures()} == {*MVTEC3D_CLASSES, MEAN}
    assert all(0 < f.value < 1 and f.source for f in published_figures())


@pytest.mark.parametrize("name", names())
def test_a_printed_mean_is_that_of_the_printed_classes(name):
    figures = _row(name)
    for metric in {f.metric for f in figures if f.class_name != MEAN}:
        values = [value_of(figures, metric, name) for name in all_classes()]
        mean = value_of(figures, metric, MEAN)
        assert mean is None or sum(values) / len(values) == pytest.approx(mean, abs=1.1e-3)


def test_a_row_has_one_method_a_lower_case_name_and_a_paper_with_a_main_row():
    for name in names():
        assert len({(f.method_name, f.method, f.modality) for f in _row(name)}) == 1
        assert name == name.lower()
        assert name.partition("/")[0] in names()
    of_ours = [_row(name)[0].method_name for name in names() if _row(name)[0].method_name]
    assert len(set(of_ours)) == len(of_ours)  # of_method gives one row


@pytest.mark.parametrize(
    ("name", "method_name", "row"),
    [
        ("m3dm", FULL, "m3dm"),
        ("m3dm", "DINO", "m3dm/rgb"),
        ("m3dm", "FPFH", "m3dm"),
        ("m3dm/3d", "DINO", "m3dm/3d"),
        ("btf", "FPFH", "btf/fpfh"),
        ("btf", FULL, "btf"),
        ("btf/sift", "FPFH", "btf/sift"),
        ("shape-guided", FULL, "shape-guided"),
    ],
)
def test_a_method_is_compared_with_its_like_in_a_paper_else_with_the_main_row(name, method_name, row):
    assert {figure.name for figure in counterpart(name, method_name)} == {row}


def test_mean_is_over_the_same_classes_or_none():
    figures = of_method(FULL)
    assert mean_of(figures, "image_rocauc", all_classes()) == 0.945
    assert mean_of(figures, "image_rocauc", ["bagel", "tire"]) == pytest.approx((0.994 + 0.850) / 2)
    assert mean_of(figures, "image_rocauc", ["bagel", "my_part"]) is None
    assert mean_of(of_method("Fusion"), "image_rocauc", ["bagel"]) is None
    assert mean_of(of_method("Fusion"), "image_rocauc", all_classes()) == 0.898
    assert mean_of([], "image_rocauc", ["bagel"]) is None
