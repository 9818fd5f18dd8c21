import json

import pytest

from utils.reporting import (
    TableRow,
    append_tables,
    check_tables,
    class_summary,
    format_metric,
    markdown_table,
    problem_lines,
    write_scores,
)

HEADER = {"method_name": "DINO", "settings": {"seed": 0, "banks": ("xyz", "rgb")}}


def _result(**changes):
    return {
        "image_rocauc": 0.5,
        "pixel_rocauc": 0.25,
        "au_pro": 0.75,
        "seconds": {"predict": 1.0, "fit_banks": 2.0},
        "skipped_samples": [],
        **changes,
    }


def test_table_titles_classes_and_adds_their_mean():
    assert markdown_table("DINO", {"cable_gland": 0.5, "CandyCane": 1.0}) == (
        "| Method | Cable_Gland | CandyCane | Mean |\n| --- | --- | --- | --- |\n| DINO | 0.500 | 1.000 | 0.750 |\n"
    )


def test_a_metric_that_is_not_available_leaves_no_mean():
    assert markdown_table("DINO", {"bagel": 0.25, "rope": 0.5}).endswith("| DINO | 0.250 | 0.500 | 0.375 |\n")
    assert markdown_table("DINO", {"bagel": None, "rope": 0.5}).endswith("| DINO | n/a | 0.500 | n/a |\n")
    assert markdown_table("DINO", {"bagel": None}).endswith("| DINO | n/a | n/a |\n")
    assert format_metric(None) == "n/a"


def test_a_table_saved_without_a_last_line_end_keeps_its_rows_apart(tmp_path):
    append_tables(tmp_path, [TableRow("DINO", {"bagel": _result()})])
    path = tmp_path / "image_rocauc_results.md"
    path.write_text(path.read_text().rstrip())
    append_tables(tmp_path, [TableRow("Fusion", {"bagel": _result()})])
    assert path.read_text().splitlines()[-2:] == ["| DINO | 0.500 | 0.500 |", "| Fusion | 0.500 | 0.500 |"]


def test_names_can_not_break_a_table():
    assert markdown_table("a|b", {"X|D\nE": 0.5}).splitlines() == [
        "| Method | X\\|D\\nE | Mean |",
        "| --- | --- | --- |",
        "| a\\|b | 0.500 | 0.500 |",
    ]


def test_tables_grow_by_a_row_while_the_classes_stay(tmp_path):
    for name in ("DINO", "Fusion"):
        text = append_tables(tmp_path, [TableRow(name, {"bagel": _result()})])
    assert (tmp_path / "image_rocauc_results.md").read_text() == (
        "# Image ROCAUC\n\n| Method | Bagel | Mean |\n| --- | --- | --- |\n"
        "| DINO | 0.500 | 0.500 |\n| Fusion | 0.500 | 0.500 |\n"
    )
    assert text.count("Fusion") == 3
    assert "DINO" not in text


def test_the_last_row_is_not_appended_twice(tmp_path):
    for _ in range(2):
        append_tables(tmp_path, [TableRow("DINO", {"bagel": _result()})])
    assert (tmp_path / "aupro_results.md").read_text().count("DINO") == 1


def test_rows_that_belong_together_are_appended_together_and_once(tmp_path):
    rows = [
        TableRow("a, mean", {"bagel": _result()}),
        TableRow("a, deviation", {"bagel": _result()}, {"au_pro": 0.1}),
    ]
    rows[1].last.update({"image_rocauc": None, "pixel_rocauc": 0.2})
    for _ in range(2):
        append_tables(tmp_path, rows)
    text = (tmp_path / "aupro_results.md").read_text()
    assert text.endswith("| a, mean | 0.750 | 0.750 |\n| a, deviation | 0.750 | 0.100 |\n")
    assert text.count("mean") == 1


def test_a_table_that_is_not_utf8_is_named_before_the_work(tmp_path):
    check_tables(tmp_path)
    (tmp_path / "aupro_results.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"aupro_results\.md: is not UTF-8, so no row can be appended; convert"
    ):
        check_tables(tmp_path)


def test_other_classes_begin_a_new_table(tmp_path):
    for name in ("bagel", "rope", "bagel"):
        append_tables(tmp_path, [TableRow("DINO", {name: _result()})])
    lines = (tmp_path / "aupro_results.md").read_text().splitlines()
    assert [line for line in lines if "Method" in line] == [
        "| Method | Bagel | Mean |",
        "| Method | Rope | Mean |",
        "| Method | Bagel | Mean |",
    ]
    assert lines[5] == ""


def test_scores_read_back_equal_and_odd_paths_are_quoted(tmp_path):
    write_scores(tmp_path, "bagel", [("test/a,b/rgb/0.png", 1, 0.1 + 0.2)])
    assert (tmp_path / "scores" / "bagel.csv").read_bytes() == (
        b'path,label,score\n"test/a,b/rgb/0.png",1,0.30000000000000004\n'
    )


def test_summary_gives_metrics_time_and_what_was_left_out():
    line = class_summary("bagel", _result(au_pro=None, skipped_samples=[{"path": "p", "reason": "r"}]))
    assert line == ("bagel: Image ROCAUC 0.500, Pixel ROCAUC 0.250, AU PRO n/a (3 s); samples left out: 1")
    assert class_summary("bagel", _result()).endswith("(3 s)")


def test_problems_name_each_sample_and_class_of_this_run():
    bad = _result(skipped_samples=[{"path": "train/good/rgb/000.png", "reason": "cut short"}])
    record = {"classes": {"bagel": bad, "rope": bad}, "failed_classes": {"tire": "no test sample"}}
    assert problem_lines(record, ["bagel", "tire"]) == [
        "bagel: left out train/good/rgb/000.png: cut short",
        "tire: failed: no test sample",
    ]
    assert json.dumps(problem_lines({"classes": {}, "failed_classes": {}}, ["bagel"])) == "[]"
