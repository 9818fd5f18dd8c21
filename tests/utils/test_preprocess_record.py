"""The record of preprocessed samples as a file that anyone may have changed, and what a killed run leaves."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.files import stamp
from utils.preprocess.record import (
    RECORD_NAME,
    RecordError,
    SampleRecord,
    copy_file,
    not_done,
    open_record,
    read_record,
    write_part,
)
from utils.signals import Terminated

HEADER = {"plane_distance": 0.004, "unit": "m"}
FILE = "bagel/train/good/xyz/000.tiff"
ENTRY = {"sample": "bagel/train/good/000", "files": {FILE: 3}, "report": {"odd": {"no points": "nothing"}}}


def _write_record(root: Path, *lines: Any) -> None:
    (root / RECORD_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_done_sample(root: Path) -> None:
    with open_record(root, HEADER) as record:
        _commit(record, FILE, b"abc")


def _commit(record: SampleRecord, file: str, content: bytes) -> None:
    write_part(record.root / file, content, record.draft)
    record.commit(ENTRY["sample"], [file], ENTRY["report"], ["000.tiff 3 4"])


@pytest.mark.parametrize(
    "line",
    [
        *([], 1, None, "text", {}),
        *(ENTRY | {"sample": 3}, ENTRY | {"files": [FILE]}, ENTRY | {"files": {FILE: "3"}}),
        *(
            ENTRY | {"report": None},
            ENTRY | {"report": {"odd": ["x"]}},
            ENTRY | {"report": {"odd": {"x": 1}}},
            ENTRY | {"source": "x"},
            ENTRY | {"source": [1]},
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


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def _parts(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*.part")]


@pytest.mark.parametrize("end", [OSError, KeyboardInterrupt, Terminated])
def test_a_run_that_ends_in_order_leaves_no_parts(end: type[BaseException], tmp_path: Path) -> None:
    def begin_a_sample() -> None:
        with open_record(tmp_path, HEADER) as record:
            write_part(tmp_path / FILE, b"abc", record.draft)
            raise end

    with pytest.raises(end):
        begin_a_sample()
    assert not _parts(tmp_path)


def test_a_part_that_is_committed_outlives_the_error_that_kept_it_from_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE).mkdir(parents=True)  # which a file can't replace
    with pytest.raises(OSError, match=r"000\.tiff"):
        _write_done_sample(tmp_path)
    (tmp_path / FILE).rmdir()
    with open_record(tmp_path, HEADER):
        assert (tmp_path / FILE).read_bytes() == b"abc"


@pytest.mark.parametrize("end", [KeyboardInterrupt, Terminated])
def test_a_commit_that_is_interrupted_once_the_line_is_written_is_finished(
    end: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def interrupt(handle: int) -> None:
        fsync(handle)
        if b"sample" in (tmp_path / RECORD_NAME).read_bytes():
            monkeypatch.setattr(os, "fsync", fsync)
            raise end

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(end):
        _write_done_sample(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b"abc"
    assert not _parts(tmp_path)


def test_an_error_once_the_line_is_written_does_not_lose_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def full(handle: int) -> None:
        if b"sample" in (tmp_path / RECORD_NAME).read_bytes():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            _write_done_sample(tmp_path)
    with open_record(tmp_path, HEADER) as record:
        assert list(record.entries) == [ENTRY["sample"]]
    assert (tmp_path / FILE).read_bytes() == b"abc"


def test_a_worker_of_a_run_that_was_killed_does_not_touch_the_parts_of_the_next(tmp_path: Path) -> None:
    with open_record(tmp_path, HEADER) as record:
        former = record.draft
    with open_record(tmp_path, HEADER) as record:
        write_part(tmp_path / FILE, b"abc", record.draft)
        write_part(tmp_path / FILE, b"late", former)
        record.commit(ENTRY["sample"], [FILE], {}, [])
        assert (tmp_path / FILE).read_bytes() == b"abc"
    assert not _parts(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_that_is_forked_does_not_hold_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    alive = context.Event()

    def live_on() -> None:
        alive.set()
        time.sleep(60)

    with open_record(tmp_path, HEADER):
        child = context.Process(target=live_on)
        child.start()
        assert alive.wait(60)
    try:
        with open_record(tmp_path, HEADER):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


MOVED = "bagel/train/bad/xyz/000.tiff"


def test_a_forgotten_sample_keeps_its_files_until_it_is_made_anew(tmp_path: Path) -> None:
    _write_done_sample(tmp_path)
    with open_record(tmp_path, HEADER) as record:
        record.forget(ENTRY["sample"])
    assert (tmp_path / FILE).read_bytes() == b"abc"
    with open_record(tmp_path, HEADER) as record:
        assert not record.entries
        _commit(record, MOVED, b"new")
    assert (tmp_path / MOVED).read_bytes() == b"new"
    assert not (tmp_path / FILE).exists()
    assert list(read_record(tmp_path)[1][ENTRY["sample"]]["files"]) == [MOVED]


@pytest.mark.parametrize("step", range(5))
def test_a_sample_that_is_cut_while_it_is_made_anew_is_the_old_or_the_new_one(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_done_sample(tmp_path)
    left = iter(range(step))

    def or_die(function: Any) -> Any:
        def step_or_die(*args: Any, **flags: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return function(*args, **flags)

        return step_or_die

    def make_anew() -> None:
        with monkeypatch.context() as patch, open_record(tmp_path, HEADER) as record:
            record.forget(ENTRY["sample"])
            for name in ("replace", "unlink"):
                patch.setattr(Path, name, or_die(getattr(Path, name)))
            patch.setattr(os, "fsync", or_die(os.fsync))
            _commit(record, MOVED, b"new")

    with pytest.raises(Killed):
        make_anew()
    with open_record(tmp_path, HEADER) as record:
        done = ENTRY["sample"] in record.entries
        assert [path for path in (FILE, MOVED) if (tmp_path / path).exists()] == [MOVED if done else FILE]
        assert done == (step >= 2), "the line is there before it is safe on the disk"


def test_what_was_put_where_a_former_result_lay_is_not_removed(tmp_path: Path) -> None:
    _write_done_sample(tmp_path)
    with open_record(tmp_path, HEADER) as record:
        record.forget(ENTRY["sample"])
        _commit(record, MOVED, b"new")
    (tmp_path / FILE).write_bytes(b"mine")
    with open_record(tmp_path, HEADER):
        pass
    assert (tmp_path / FILE).read_bytes() == b"mine"


def test_samples_that_the_record_does_not_list_are_told(tmp_path: Path) -> None:
    raw = tmp_path / FILE.replace("000", "001")
    assert not_done(tmp_path, [raw]) == [], "without a record nobody knows"
    _write_done_sample(tmp_path)
    assert not_done(tmp_path, [tmp_path / FILE, raw]) == [raw]
    part = tmp_path / FILE.replace("000.tiff", ".000.tiff.part")
    part.write_bytes(b"abc")  # of a run that was killed once it had committed the sample
    assert not_done(tmp_path, [tmp_path / FILE]) == [tmp_path / FILE]
    part.unlink()
    (tmp_path / FILE).write_bytes(b"another")
    assert not_done(tmp_path, [tmp_path / FILE]) == [tmp_path / FILE]
    (tmp_path / RECORD_NAME).write_bytes(b"")  # a run that was killed at its start
    assert not_done(tmp_path, [raw]) == [raw]


def test_a_relative_path_is_the_same_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_done_sample(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert not_done(Path(), [tmp_path / FILE]) == not_done(tmp_path, [Path(FILE)]) == []


def test_a_copy_has_the_time_of_its_source_and_an_error_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "LICENSE"
    source.write_bytes(b"text")
    os.utime(source, ns=(1, 10**18))
    copy_file(source, tmp_path / "copy/LICENSE")
    assert stamp(tmp_path / "copy/LICENSE") == stamp(source)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken: can't be written"):
        copy_file(source, tmp_path / "taken")
    assert not _parts(tmp_path)


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


def test_a_record_that_cannot_be_cut_to_its_whole_lines_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def truncate(self, _size: int | None = None) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, _mode, buffering: Full(path, "a+"))
    with (
        pytest.raises(OSError, match=RECORD_NAME + ".*No space left on device"),
        open_record(tmp_path, {"preprocessing": "eyecandies"}),
    ):
        pass
