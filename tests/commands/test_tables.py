"""utils/tables.py: runs and published figures as tables for a paper."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import stdev

import pytest

from tests.mutants import mutants
from tests.tiny_runs import read_record, run_main
from utils import tables
from utils.class_names import MVTEC3D_CLASSES
from utils.metrics import METRICS
from utils.report.runs import ResultsError, read_run

ROOT = Path(__file__).parent.parent.parent
FULL = "DINO+Point_MAE+Fusion"


def _entry(value: float | None, **others) -> dict:
    """A class whose metrics are all `value`."""
    return {**{metric.key: value for metric in METRICS}, "counts": {"train": 3}, **others}


def _record(classes: dict[str, dict], method: str = FULL, settings: dict | None = None, **others) -> dict:
    return {
        "method_name": method,
        "random_weights": False,
        "weights": {"rgb": "dino.pth sha256:0"},
        "settings": {"f_coreset": 0.1, "random_state": 0, **(settings or {})},
        "complete": True,
        "classes": classes,
        "failed_classes": {},
        **others,
    }


@pytest.fixture
def write(tmp_path):
    """Writes a results.json into a folder of that name; returns the folder."""

    def write_record(name: str, record: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
        return folder

    return write_record


@pytest.fixture
def run(capsys):
    """Runs the command; returns its status, stdout and stderr."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what came before
        status = tables.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_command


def _rows(text: str) -> list[list[str]]:
    """The cells of all markdown lines but rules."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [line.strip("| ").split(" | ") for line in lines]


def _csv(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["method"], row["class"]): row for row in csv.DictReader(io.StringIO(text))}


# What the tables hold


def test_runs_are_rows_and_classes_columns_in_the_order_of_the_data_set(write, run):
    one = write("one", _record({"rope": _entry(0.5), "bagel": _entry(0.25)}))
    other = write("other", _record({"gear": _entry(1.0), "rope": _entry(0.75), "bagel": _entry(0.5)}, "FPFH"))
    status, text, errors = run(one, other, "--metric", "image_ap")
    assert (status, errors) == (0, "")
    assert text.startswith("## Image AP\n")
    assert _rows(text) == [
        ["Method", "Bagel", "Rope", "Gear", "Mean"],
        [FULL, "0.250", "0.500", "n/a", "n/a"],
        ["FPFH", "0.500", "0.750", "1.000", "0.750"],
    ]


def test_the_three_tables_of_the_release_are_the_default(write, run):
    _, text, _ = run(write("one", _record({"bagel": _entry(0.5)})))
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Image ROCAUC", "Pixel ROCAUC", "AU PRO"]


def test_published_figures_stand_beside_ours_with_the_differences_of_what_is_printed(write, run):
    folder = write("one", _record({"bagel": _entry(0.9844), "tire": _entry(0.9)}))
    _, text, _ = run(folder, "--against", "m3dm", "cfm", "--metric", "image_rocauc")
    assert _rows(text)[1:] == [
        ["M3DM, RGB+3D (published)", "0.994", "0.850", "0.922"],
        ["CFM, RGB+3D (published)", "–", "–", "–"],
        [FULL, "0.984", "0.900", "0.942"],
        ["difference to M3DM, RGB+3D", "−0.010", "+0.050", "+0.020"],
        ["difference to CFM, RGB+3D", "–", "–", "–"],
    ]
    assert "* M3DM, RGB+3D: M3DM, arXiv 2303.00601\n" in text


def test_means_of_all_classes_are_compared_as_printed_in_the_source(write, run):
    folder = write("one", _record({name: _entry(0.95) for name in MVTEC3D_CLASSES}))
    _, text, _ = run(folder, "--against", "cfm", "m3dm", "--metric", "image_rocauc")
    means = {row[0]: row[-1] for row in _rows(text)}
    assert means["CFM, RGB+3D (published)"] == "0.954"
    assert means["M3DM, RGB+3D (published)"] == "0.945"
    assert means["difference to CFM, RGB+3D"] == "−0.004"


def test_a_class_nobody_has_published_takes_the_mean_from_the_comparison(write, run):
    folder = write("one", _record({"bagel": _entry(0.9), "gear": _entry(0.8)}))
    _, text, _ = run(folder, "--against", "m3dm", "--metric", "au_pro")
    assert _rows(text)[1:] == [
        ["M3DM, RGB+3D (published)", "0.970", "–", "–"],
        [FULL, "0.900", "0.800", "0.850"],
        ["difference to M3DM, RGB+3D", "−0.070", "–", "–"],
    ]


def test_every_run_is_compared_with_the_row_of_its_method(write, run):
    folders = [write(name, _record({"bagel": _entry(0.9)}, name)) for name in ("DINO", "Point_MAE")]
    _, text, _ = run(*folders, "--against", "m3dm", "--metric", "image_rocauc")
    assert [row[0] for row in _rows(text)[1:]] == [
        "M3DM, RGB (published)",
        "M3DM, 3D (published)",
        "DINO",
        "difference to M3DM, RGB",
        "Point_MAE",
        "difference to M3DM, 3D",
    ]


def test_a_run_of_main_becomes_a_table(tiny_dataset, tmp_path, run):
    assert run_main(tiny_dataset, tmp_path / "results", "FPFH", random_weights=False) == 0
    value = read_record(tmp_path / "results")["classes"]["bagel"]["au_pro"]
    status, text, _ = run(tmp_path / "results", "--against", "btf", "--metric", "au_pro")
    assert status == 0
    assert _rows(text)[1:3] == [
        ["BTF, FPFH, 3D (published)", "0.974", "0.974"],
        ["FPFH", f"{value:.3f}", f"{value:.3f}"],
    ]


# Studies and seeds


def test_a_study_is_a_row_of_means_and_sample_deviations(write, run):
    values = {"bagel": (0.5, 0.7), "rope": (0.2, 0.1)}
    classes = {
        name: _entry(sum(pair) / 2, variants={f"seed_{i}": _entry(v) for i, v in enumerate(pair)})
        for name, pair in values.items()
    }
    folder = write("study", _record(classes, row="FPFH (5 shots)"))
    _, text, _ = run(folder, "--metric", "au_pro")
    mean_deviation = stdev([(0.5 + 0.2) / 2, (0.7 + 0.1) / 2])
    assert _rows(text)[1] == [
        "FPFH (5 shots)",
        "0.600 ± 0.141",
        "0.150 ± 0.071",
        f"0.375 ± {mean_deviation:.3f}",
    ]
    assert "sample standard deviation" in text
    row = _csv(run(folder, "--metric", "au_pro", "--format", "csv")[1])["FPFH (5 shots)", "mean"]
    assert (float(row["value"]), float(row["deviation"])) == pytest.approx((0.375, mean_deviation))
    assert row["n"] == "2"


def _seeds(write, parent: str, **settings_of_last) -> list[Path]:
    return [
        write(
            f"{parent}/seed_{i}",
            _record(
                {"bagel": _entry(value)},
                settings={"random_state": i, **(settings_of_last if i == 10 else {})},
            ),
        )
        for i, value in ((0, 0.5), (2, 0.6), (10, 0.7))
    ]


def test_runs_that_differ_in_seeds_are_joined_when_asked(write, run):
    folders = _seeds(write, "study")
    apart, joined = (run(*folders, *flags, "--metric", "au_pro")[1] for flags in ([], ["--join"]))
    assert [row[1] for row in _rows(apart)[1:]] == ["0.500", "0.600", "0.700"]
    assert len({row[0] for row in _rows(apart)[1:]}) == 3
    assert _rows(joined)[1:] == [[FULL, "0.600 ± 0.100", "0.600 ± 0.100"]]


def test_a_folder_without_results_stands_for_its_sub_folders_joined(write, run):
    _seeds(write, "study")
    parent = write("study/fpfh", _record({"bagel": _entry(0.9)}, "FPFH")).parent
    _, text, _ = run(parent, "--metric", "au_pro")
    assert [row[:2] for row in _rows(text)[1:]] == [["FPFH", "0.900"], [FULL, "0.600 ± 0.100"]]


def test_other_settings_are_not_joined_and_the_difference_is_named(write, run):
    folders = _seeds(write, "study", f_coreset=0.2)
    _, text, errors = run(*folders, "--join", "--metric", "au_pro")
    assert [row[1] for row in _rows(text)[1:]] == ["0.550 ± 0.071", "0.700"]
    assert f"{folders[0]} and {folders[2]} are two rows: they differ in f_coreset" in errors


def test_equal_seeds_are_not_counted_twice(write, run):
    folders = [write(name, _record({"bagel": _entry(0.5)})) for name in ("one", "copy")]
    _, text, errors = run(*folders, "--join", "--metric", "au_pro")
    assert len(_rows(text)) == 3
    assert "both hold bagel of the same seeds" in errors


def test_classes_done_apart_with_equal_settings_join_into_one_row(write, run):
    folders = [write(name, _record({name: _entry(0.5)})) for name in ("bagel", "rope")]
    _, text, _ = run(*folders, "--join", "--metric", "au_pro")
    assert _rows(text) == [["Method", "Bagel", "Rope", "Mean"], [FULL, "0.500", "0.500", "0.500"]]


def test_a_variant_without_a_class_is_left_out_of_the_mean(write, run):
    both = write("both", _record({"bagel": _entry(0.5), "rope": _entry(0.7)}))
    one = write(
        "one",
        _record({"bagel": _entry(0.9)}, settings={"random_state": 1}, failed_classes={"rope": "no memory"}),
    )
    _, text, errors = run(both, one, "--join", "--metric", "au_pro")
    assert _rows(text)[1] == [FULL, "0.700 ± 0.283", "0.700†", "0.600†"]
    assert f"{FULL}: rope: failed: no memory" in errors


# What can't be trusted


def test_what_can_not_be_trusted_is_marked_and_named(write, run):
    classes = {"bagel": _entry(0.5, doubt="images are swapped"), "rope": _entry(0.7)}
    folder = write(
        "one",
        _record(classes, random_weights=True, complete=False, failed_classes={"tire": "disk\nfull"}),
    )
    _, text, errors = run(folder, "--metric", "au_pro")
    assert _rows(text)[1] == [f"{FULL} (random weights)", "0.500†", "0.700", "failed", "n/a"]
    assert "†: doubtful" in text
    assert [line.partition(" (random weights): ")[2] for line in errors.splitlines()] == [
        "random weights: these figures mean nothing",
        "the run is not complete",
        "tire: failed: disk\\nfull",
        "bagel: doubtful: images are swapped",
    ]
    row = _csv(run(folder, "--metric", "au_pro", "--format", "csv")[1])[f"{FULL} (random weights)", "mean"]
    assert (row["value"], row["doubtful"], row["failed"], row["random_weights"]) == ("", "1", "1", "1")


def test_seeds_of_data_in_different_places_make_one_row_and_of_other_data_two(write, run):
    folders = [
        write(
            f"seed_{seed}",
            _record({"bagel": _entry(0.5)}, settings={"random_state": seed}, dataset_path=path),
        )
        for seed, path in enumerate(("/a/mvtec3d", "/b/mvtec3d", "/a/mvtec3d", "/a/raw"))
    ]
    _, text, errors = run(*folders[:3], "--join", "--metric", "au_pro")
    assert len(_rows(text)) == 1 + 1
    assert errors.endswith(f" {FULL}: one row of /a/mvtec3d and /b/mvtec3d: are these the same data?\n")
    assert run(folders[0], folders[2], "--join")[2] == ""
    _, text, _ = run(folders[0], folders[3], "--join", "--metric", "au_pro")
    assert len(_rows(text)) == 1 + 2


def test_metrics_that_the_labels_do_not_allow_are_not_available(write, run):
    _, text, _ = run(
        write("one", _record({"bagel": _entry(None)})), "--against", "m3dm", "--metric", "au_pro"
    )
    assert _rows(text)[2:] == [[FULL, "n/a", "n/a"], ["difference to M3DM, RGB+3D", "–", "–"]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method_name": 3}, "method_name is 3"),
        ({"settings": None}, "settings is None"),
        ({"classes": {"bagel": {"image_rocauc": 0.5}}}, "class 'bagel' has no field 'pixel_rocauc'"),
        ({"classes": {"bagel": _entry("high")}}, "class 'bagel' image_rocauc is 'high'"),
        (
            {"classes": {"bagel": _entry(95.4)}},
            "class 'bagel' image_rocauc is 95.4, which is not within 0..1",
        ),
        ({"classes": {"bagel": _entry(float("nan"))}}, "holds NaN"),
        ({"classes": {"bagel": _entry(0.5, variants={"a": {"au_pro": "?"}})}}, "au_pro is '?'"),
        ({"row": 1}, "row is 1"),
    ],
)
def test_a_record_that_is_none_is_one_line_with_the_file_and_nothing_is_written(
    write, run, tmp_path, change, problem
):
    bad = write("bad", {**_record({}), **change})
    good = write("good", _record({"bagel": _entry(0.5)}))
    status, text, errors = run(good, bad, "--output", tmp_path / "table.md")
    assert (status, text, (tmp_path / "table.md").exists()) == (1, "", False)
    (line,) = errors.splitlines()
    assert str(bad / "results.json") in line
    assert problem in line


def test_a_folder_without_results_is_named(run, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        status, _, errors = run(folder)
        assert status == 1
        assert errors.count("\n") == 1
        assert f"error: {folder}: " in errors


def test_mutants_of_a_record_are_read_or_are_one_error(write, tmp_path):
    variants = {"seed_0": _entry(0.4), "seed_1": _entry(0.6)}
    record = _record({"bagel": _entry(0.5, doubt=None, variants=variants)}, row="FPFH")
    path = write("one", record) / "results.json"
    refused = 0
    for mutant in mutants(path.read_bytes(), 300):
        path.write_bytes(mutant)
        try:
            read_run(path.parent)
        except ResultsError:
            refused += 1
    assert 100 < refused < 300


# Formats


def test_csv_is_a_line_a_class_and_published_row_with_unrounded_values(write, run):
    folder = write("one", _record({"bagel": _entry(1 / 3), "gear": _entry(0.5)}))
    _, text, _ = run(folder, "--against", "m3dm", "--metric", "image_rocauc", "--format", "csv")
    assert text.splitlines() == [
        "method,class,metric,value,deviation,n,doubtful,failed,random_weights,"
        "against,published,difference,source",
        f"{FULL},bagel,image_rocauc,0.3333333333333333,,1,0,0,0,"
        'm3dm,0.994,-0.660667,"M3DM, arXiv 2303.00601"',
        f"{FULL},gear,image_rocauc,0.5,,1,0,0,0,m3dm,,,",
        f"{FULL},mean,image_rocauc,0.41666666666666663,,1,0,0,0,m3dm,,,",
    ]


HOSTILE_LATEX = r"a_b & 50% $x$ #1 {c} ^~\input{x}"


def test_latex_is_balanced_escaped_and_bold_where_best(write, run):
    seeds = {"a": _entry(0.9), "b": _entry(0.8)}
    folders = [
        write("one", _record({"bagel": _entry(0.85, variants=seeds)}, row=HOSTILE_LATEX)),
        write("tie", _record({"bagel": _entry(0.8504)}, "FPFH")),
        write("worse", _record({"bagel": _entry(0.5)}, "DINO")),
        write("random", _record({"bagel": _entry(0.99)}, "DINO", random_weights=True)),
    ]
    _, text, _ = run(*folders, "--metric", "au_pro_exact_01", "--format", "latex")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    bold = [line.count(r"\textbf") for line in lines]
    assert bold == [0, 2, 2, 0, 0]
    assert r"\textbf{0.850 $\pm$ 0.071}" in lines[1]
    assert lines[1].startswith(
        r"a\_b \& 50\% \$x\$ \#1 \{c\} \textasciicircum{}\textasciitilde{}\textbackslash{}input\{x\} & "
    )
    assert r"\caption{AU PRO 1 \%, exact. $\pm$: sample standard deviation over seeds.}" in text
    _check_balance(text)


def _check_balance(text: str) -> None:
    """Braces, environments and dollars close, and every row has the columns that the table declares."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    unescaped = re.sub(r"\\[{}$&%#_\\]", "", body)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") % 2 == 0
    assert "_" not in re.sub(r"\\label\{.*?\}", "", unescaped)
    assert re.findall(r"\\begin\{([^}]*)\}", body) == re.findall(r"\\end\{([^}]*)\}", body)[::-1]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", body).group(1))
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}


def test_a_class_of_any_name_keeps_the_markdown_table_whole(write, run):
    folder = write("one", _record({"a | b\n": _entry(0.5), "\ud800": _entry(0.5)}))
    for flags in ([], ["--format", "latex"], ["--format", "csv", "--output", folder / "table.csv"]):
        status, text, _ = run(folder, "--metric", "au_pro", *flags)
        assert status == 0
        if not flags:
            assert "| Method | A \\| B\\n | \\ud800 | Mean |" in text


def test_output_receives_the_text_of_the_screen(write, run, tmp_path):
    folder = write("one", _record({"bagel": _entry(0.5)}))
    text = run(folder)[1]
    assert run(folder, "--output", tmp_path / "new" / "table.md") == (0, "", "")
    assert (tmp_path / "new" / "table.md").read_text(encoding="utf-8") == text


def test_the_documented_command_starts_without_torch_and_lists_the_names(tmp_path):
    script = [sys.executable, "-X", "importtime", "utils/tables.py", "--help"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "shape-guided" in done.stdout.replace("\n", "").replace(" ", "")
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


def test_a_doubtful_figure_is_not_the_best(write, run):
    doubtful = write("a", _record({"bagel": _entry(0.9, doubt="few samples")}))
    trusted = write("b", _record({"bagel": _entry(0.8)}, method="DINO"))
    _, text, _ = run(doubtful, trusted, "--metric", "au_pro", "--format", "latex")
    assert r"\textbf{0.800}" in text
    assert r"\textbf{0.9" not in text


def test_classes_of_unequal_numbers_of_seeds_are_told(write, run):
    folders = [
        write(f"seed_{seed}", _record({name: _entry(0.5) for name in names}, settings={"random_state": seed}))
        for seed, names in enumerate((("bagel", "rope"), ("bagel",)))
    ]
    _, _, errors = run(*folders, "--join", "--metric", "au_pro")
    assert (
        "some classes have more seeds than others (bagel 2, rope 1); the mean is over those of all" in errors
    )


def test_a_class_called_mean_is_not_compared_with_the_published_mean(write, run):
    folder = write("one", _record({"mean": _entry(0.5)}))
    _, text, _ = run(folder, "--metric", "au_pro", "--against", "btf", "--format", "markdown")
    difference = next(row for row in _rows(text) if row[0].startswith("difference"))
    assert set(difference[1:]) <= {"–", "n/a", ""}
