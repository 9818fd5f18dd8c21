"""The record of preprocessed samples as a file that anyone may have changed, and what a killed run leaves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.preprocess.record import RECORD_NAME, RecordError, open_record, read_record, write_part

HEADER = {"plane_distance": 0.004, "unit": "m"}
FILE = "bagel/train/good/xyz/000.tiff"
ENTRY = {"sample": "bagel/train/good/000", "files": {FILE: 3}, "report": {"odd": {"no points": "nothing"}}}


def _write_record(root: Path, *lines: Any) -> None:
    (root / RECORD_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_done_sample(root: Path) -> None:
    with open_record(root, HEADER) as record:
        write_part(root / FILE, b"abc")
        record.commit(ENTRY["sample"], [FILE], ENTRY["report"])


@pytest.mark.parametrize(
    "line",
    [
        *([], 1, None, "text", {}),
        *(ENTRY | {"sample": 3}, ENTRY | {"files": [FILE]}, ENTRY | {"files": {FILE: "3"}}),
        *(
            ENTRY | {"report": None},
            ENTRY | {"report": {"odd": ["x"]}},
            ENTRY | {"report": {"odd": {"x": 1}}},
        ),
        *(ENTRY | {"files": {name: 3}} for name in ("../a/b/c/d", "/a/b/c/d", "a/../../../d", "LICENSE", "")),
        *(ENTRY | {"files": {f"a/b/c/d/{name}": 3}} for name in ("\0", "\ud800")),
    ],
)
def test_an_entry_of_another_form_is_an_error_that_names_the_record(line: Any, tmp_path: Path) -> None:
    _write_record(tmp_path, HEADER, line)
    for read in (lambda: read_record(tmp_path), lambda: open_record(tmp_path, HEADER).__enter__()):
        with pytest.raises(RecordError, match=rf"{RECORD_NAME}: damaged \(line 2 .*delete this file"):
            read()


@pytest.mark.parametrize("header", [[], "text", {"unit": ["m"]}, {"unit": {"unit": "m"}}])
def test_a_header_of_another_form_is_an_error_that_names_the_record(header: Any, tmp_path: Path) -> None:
    _write_record(tmp_path, header, ENTRY)
    with pytest.raises(RecordError, match=rf"{RECORD_NAME}: damaged \(its first line"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000 + b"\n", b"\xff\xfe\n", b"1" * 5000 + b"\n", b"{}}\n"])
def test_lines_that_are_no_json_are_an_error_that_names_the_record(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_bytes(content)
    with pytest.raises(RecordError, match=rf"{RECORD_NAME}: damaged"):
        read_record(tmp_path)


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    _write_record(tmp_path, HEADER, ENTRY, ENTRY)
    content, rng, refused = (tmp_path / RECORD_NAME).read_bytes(), np.random.default_rng(0), 0
    for _ in range(500):
        mutant = bytearray(content)
        for place in rng.integers(len(mutant), size=rng.integers(1, 4)):
            mutant[place] = rng.choice(list(b'{}[]",:0.-/\\\n\x00\xff'))
        (tmp_path / RECORD_NAME).write_bytes(mutant)
        try:
            read_record(tmp_path)
        except RecordError:
            refused += 1
    assert refused > 250


def test_parts_of_uncommitted_samples_are_swept_and_nothing_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "data", tmp_path / ".other.tiff.part"
    _write_done_sample(root)
    folder = root / "bagel/train/good"
    write_part(folder / "xyz/001.tiff", b"half")
    write_part(folder / "rgb/001.png", b"half")
    foreign = [outside, folder / "xyz/.movie.part", folder / "xyz/001.tiff.part", folder / ".001.tiff.part"]
    for path in foreign:
        path.write_bytes(b"mine")
    with open_record(root, HEADER):
        pass
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*foreign, root / FILE, root / RECORD_NAME}


def test_parts_of_committed_samples_are_put_in_place_not_swept(tmp_path: Path) -> None:
    _write_record(tmp_path, HEADER, ENTRY)
    write_part(tmp_path / FILE, b"abc")
    with open_record(tmp_path, HEADER) as record:
        assert list(record.entries) == [ENTRY["sample"]]
    assert (tmp_path / FILE).read_bytes() == b"abc"


def test_results_of_another_command_are_refused_in_one_sentence(tmp_path: Path) -> None:
    _write_done_sample(tmp_path)
    with (
        pytest.raises(RecordError, match="holds the results of another preprocessing command; name another"),
        open_record(tmp_path, {"preprocessing": "eyecandies"}),
    ):
        pass


@pytest.mark.parametrize("step", range(2))
def test_a_full_disk_names_the_file(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, fsync = iter(range(step)), os.fsync

    def full(handle: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=[RECORD_NAME, "000.tiff"][step] + ".*No space left on device"):
        _write_done_sample(tmp_path)
