"""Results on disk: what is kept, what is stale, what is joined."""

import json
import shutil

import pytest

from tests.tiny_runs import all_files
from utils.metrics import METRICS
from utils.results import RESULT_FIELDS, ClassRecord, ResultsFolder, alone_with_classes

HEADER = {"method_name": "DINO", "settings": {"seed": 0, "banks": ("xyz", "rgb")}}
DATA = {"fingerprint": "1"}
EMPTY = {
    "seconds": {},
    "kinds": {},
    "memory_mb": {},
    "counts": {},
    "remarks": [],
    "skipped_samples": [],
    "device": "cpu",
}
RESULT = {
    **dict.fromkeys(RESULT_FIELDS),
    **dict.fromkeys((metric.key for metric in METRICS), 0.5),
    **EMPTY,
}


@pytest.fixture
def results(tmp_path):
    return ResultsFolder(tmp_path, HEADER, ["bagel", "cookie", "rope"])


def test_a_cut_run_keeps_its_class_while_header_and_data_are_equal(results, tmp_path):
    assert not results.was_cut_after("bagel", DATA)
    results.write("bagel", DATA, RESULT)
    assert results.was_cut_after("bagel", DATA)
    assert not results.was_cut_after("bagel", {**DATA, "fingerprint": "2"})
    assert not ResultsFolder(tmp_path, {**HEADER, "settings": {"seed": 1}}).was_cut_after("bagel", DATA)
    assert not ResultsFolder(tmp_path, {**HEADER, "new": None}).was_cut_after("bagel", DATA)


def test_a_failed_class_is_done_again(results):
    results.write("bagel", DATA, failure="no sample")
    assert not results.was_cut_after("bagel", DATA)


def test_a_complete_run_is_done_again(results):
    results.write("bagel", DATA, RESULT)
    results.complete(["bagel", "rope"])
    assert not results.was_cut_after("bagel", DATA)


def test_runs_of_other_classes_are_joined_in_order_and_other_headers_are_not(results, tmp_path):
    results.write("rope", DATA, {**RESULT, "device": "cuda:0"})
    results.write("bagel", DATA, RESULT)
    results.write("tire", DATA, failure="no sample")
    ResultsFolder(tmp_path, {**HEADER, "method_name": "FPFH"}).write("peach", DATA, RESULT)
    content = results.join()
    assert list(content["classes"]) == ["bagel", "rope"]
    assert content["failed_classes"] == {"tire": "no sample"}
    assert content["device"] == "cpu, cuda:0"
    assert content["complete"] is False
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(content))
    assert results.of_other_runs() == ["peach"]


def test_what_an_earlier_run_left_of_a_class_goes(results, tmp_path):
    results.write("bagel", DATA, RESULT)
    for name in (
        "scores/bagel.csv",
        "report/bagel.json",
        "pred_maps/bagel/test/hole/0.tiff",
        "scores/rope.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    results.begin("bagel")
    left = [name for name in all_files(tmp_path) if not name.startswith(".locks")]
    assert sorted(left) == ["results.json", "scores/rope.csv"]
    assert json.loads((tmp_path / "results.json").read_text())["classes"] == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps({"header": {}, "data": {}, "result": None, "failure": None, "run_complete": False}),
        json.dumps({"header": {}, "data": {}, "result": {}, "failure": None, "run_complete": False}),
        json.dumps({"header": [], "data": {}, "result": None, "failure": "x", "run_complete": False}),
        json.dumps(
            {
                "header": {},
                "data": {},
                "result": {**RESULT, "au_pro": "1"},
                "failure": None,
                "run_complete": False,
            }
        ),
    ],
)
def test_what_is_no_record_of_ours_counts_as_none(tmp_path, content):
    (tmp_path / "bagel.json").write_text(content)
    assert ClassRecord.read(tmp_path / "bagel.json") is None


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ({**RESULT, "au_pro": float("nan")}, "JSON"),
        ({**RESULT, "extra": 1}, "field 'extra'"),
        ({"au_pro": 1.0}, "no field"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(results, tmp_path, result, problem):
    with pytest.raises(ValueError, match=problem):
        results.write("bagel", DATA, result)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_that_is_just_being_written_is_no_class(results, tmp_path):
    results.write("bagel", DATA, RESULT)
    shutil.copy(tmp_path / "classes/bagel.json", tmp_path / "classes/.m3dm-tmp-abcdefgh.json")
    (tmp_path / "classes/.m3dm-tmp-bbcdefgh.json").write_text("{")
    assert list(results.join()["classes"]) == ["bagel"]
    assert results.of_other_runs() == []


def test_a_run_that_ends_beside_one_at_work_is_not_all(results):
    results.write("bagel", DATA, RESULT)
    assert results.joined(ending=["bagel"])["complete"]
    results.write("rope", DATA, RESULT)
    assert not results.joined(ending=["bagel"])["complete"]


def test_two_runs_of_one_folder_are_kept_from_the_same_class(tmp_path):
    with (
        alone_with_classes(tmp_path, ["bagel"]),
        alone_with_classes(tmp_path, ["rope"]),
        pytest.raises(OSError, match="another run is at work on bagel there"),
        alone_with_classes(tmp_path, ["tire", "bagel"]),
    ):
        pass
