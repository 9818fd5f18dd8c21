"""The published figures: one file, from which the report and the documents take them."""

from pathlib import Path

import pytest

from feature_extractors.methods import METHODS
from utils.metrics import METRICS
from utils.report.published import (
    MEAN,
    all_classes,
    markdown_table,
    mean_of,
    of_method,
    published_figures,
    value_of,
)

ROOT = Path(__file__).parent.parent.parent
FULL = "DINO+Point_MAE+Fusion"


def test_the_table_in_the_documents_is_that_of_the_data():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert markdown_table() in text


def test_every_figure_is_of_a_method_and_a_metric_of_ours_and_names_its_source():
    places = [(f.method_name, f.metric, f.class_name) for f in published_figures()]
    assert len(set(places)) == len(places)
    assert {name for name, _, _ in places} <= set(METHODS)
    assert {metric for _, metric, _ in places} <= {metric.key for metric in METRICS}
    assert all(0 < f.value < 1 and f.source for f in published_figures())


@pytest.mark.parametrize("method", METHODS)
def test_a_printed_mean_is_that_of_the_printed_classes(method):
    figures = of_method(method)
    for metric in {f.metric for f in figures if f.class_name != MEAN}:
        values = [value_of(figures, metric, name) for name in all_classes()]
        assert sum(values) / len(values) == pytest.approx(value_of(figures, metric, MEAN), abs=1.1e-3)


def test_mean_is_over_the_same_classes_or_none():
    figures = of_method(FULL)
    assert mean_of(figures, "image_rocauc", all_classes()) == 0.945
    assert mean_of(figures, "image_rocauc", ["bagel", "tire"]) == pytest.approx((0.994 + 0.850) / 2)
    assert mean_of(figures, "image_rocauc", ["bagel", "my_part"]) is None
    assert mean_of(of_method("Fusion"), "image_rocauc", ["bagel"]) is None
    assert mean_of(of_method("Fusion"), "image_rocauc", all_classes()) == 0.898
    assert mean_of([], "image_rocauc", ["bagel"]) is None
