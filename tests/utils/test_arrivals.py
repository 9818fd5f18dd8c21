"""When a part in a watched folder is ready, and what is said of the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from utils.arrivals import Arrivals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """It holds the part a."""
    place = tmp_path / "incoming"
    place.mkdir()
    for name in ("a.png", "a.tiff"):
        (place / name).write_bytes(b"1234")
    return place


def ready(arrivals: Arrivals) -> list[str]:
    return [part.name for part in arrivals.look().ready]


def replace(path: Path, content: bytes) -> None:
    """By a file of the same time."""
    before, new = path.stat(), path.with_name(".new")
    new.write_bytes(content)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)


def test_a_part_is_ready_once_when_it_has_stopped_changing(folder: Path) -> None:
    arrivals = Arrivals(folder)
    assert [ready(arrivals) for _ in range(3)] == [[], ["a"], []]
    (folder / "a.tiff").write_bytes(b"123456")
    assert [ready(arrivals) for _ in range(3)] == [[], ["a"], []]


@pytest.mark.skipif(os.name != "posix", reason="the time of a change of a file's place")
def test_a_file_of_equal_size_and_time_in_the_place_of_another_is_a_change(folder: Path) -> None:
    arrivals = Arrivals(folder)
    ready(arrivals), ready(arrivals)
    replace(folder / "a.tiff", b"5678")
    assert [ready(arrivals) for _ in range(3)] == [[], ["a"], []]
    before = (folder / "a.tiff").stat()
    (folder / "a.tiff").write_bytes(b"9999")  # in place
    os.utime(folder / "a.tiff", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [ready(arrivals) for _ in range(3)] == [[], ["a"], []]


def test_a_folder_that_goes_and_comes_back_is_said_once(folder: Path) -> None:
    arrivals = Arrivals(folder)
    ready(arrivals), ready(arrivals)
    aside = folder.with_name("aside")
    folder.rename(aside)
    assert arrivals.look().news == [f"{folder}: is gone; waiting for it to come back"]
    assert arrivals.look() == ([], [], [])
    aside.rename(folder)
    shutil.copy(folder / "a.png", folder / "b.png")
    shutil.copy(folder / "a.tiff", folder / "b.tiff")
    assert arrivals.look().news == [f"{folder}: is back"]
    assert ready(arrivals) == ["b"]


def test_what_stays_without_its_pair_is_said_once(folder: Path) -> None:
    arrivals = Arrivals(folder)
    (folder / "b.png").write_bytes(b"1234")
    assert arrivals.look().news == []  # its cloud may be on the way
    assert arrivals.look().news == [f"left out: {folder}: b has b.png but no xyz file"]
    assert arrivals.look().news == []
    assert len(arrivals.left_out) == 1
    (folder / "b.tiff").write_bytes(b"1234")
    assert [ready(arrivals) for _ in range(2)] == [[], ["b"]]
    assert arrivals.left_out == []
