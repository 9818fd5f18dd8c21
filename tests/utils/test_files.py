"""Locks, atomic writing, and what killed writers leave."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import TEMPORARY_PREFIX, alone_with, atomic_path, check_writable, sweep_leftovers, try_lock

fcntl = pytest.importorskip("fcntl", reason="no locks on this system")


def test_files_get_the_permissions_of_the_start_and_no_thread_changes_them(tmp_path, monkeypatch):
    expected = 0o666 & ~os.umask(0o22)
    os.umask(0o666 & ~expected)
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("all threads have one umask"))
    with atomic_path(tmp_path / "a") as path:
        path.write_text("a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == expected


def test_a_lock_is_had_by_one_at_a_time(tmp_path):
    with (
        alone_with(tmp_path / "lock", "taken"),
        pytest.raises(OSError, match="taken"),
        alone_with(tmp_path / "lock", "taken"),
    ):
        pass
    with alone_with(tmp_path / "lock", "taken"):
        pass


def test_who_opened_the_lock_file_before_its_release_competes_for_the_same_lock(tmp_path):
    path = tmp_path / "lock"
    with alone_with(path, "taken"):
        early = path.open("a")
    with early, alone_with(path, "taken"):
        assert not try_lock(early)


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match=r"file\.txt: can't be written .*No space left"), atomic_path(path):
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def write_until_killed(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing `path`."""
    code = f"import time\nfrom utils.files import atomic_path\nwith atomic_path({str(path)!r}) as p:\n"
    code += "    p.write_text('half'); print('writing', flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_temporary_is_swept_when_its_writer_is_dead_and_not_before(tmp_path, how):
    (tmp_path / "deep").mkdir()
    process = write_until_killed(tmp_path / "deep" / "file.txt")
    try:
        (temporary,) = (tmp_path / "deep").iterdir()
        assert sweep_leftovers(tmp_path) == 0
        assert temporary.read_text() == "half"
    finally:
        process.send_signal(how)
        process.communicate()
    assert sweep_leftovers(tmp_path, deep=False) == 0
    assert sweep_leftovers(tmp_path) == 1
    assert not list((tmp_path / "deep").iterdir())


def test_only_our_own_temporaries_are_swept(tmp_path):
    names = [
        ".theirs.tmp",
        "m3dm-tmp-abcd1234.png",
        f"{TEMPORARY_PREFIX}abc.png",
        f"{TEMPORARY_PREFIX}notes.txt.bak",
    ]
    for name in names:
        (tmp_path / name).write_text("kept")
    (tmp_path / f"{TEMPORARY_PREFIX}abcd1234").write_text("swept")
    assert sweep_leftovers(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    assert sweep_leftovers(tmp_path / "none") == 0


def test_the_look_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new", "--output")
    assert not list((tmp_path / "new").iterdir())


def test_an_error_without_a_file_s_name_gets_one(tmp_path):
    with (
        pytest.raises(OSError, match=r"b\.txt: can't be written \(3 requested and 0 written\)"),
        atomic_path(tmp_path / "b.txt"),
    ):
        raise OSError("3 requested and 0 written")  # as np.ndarray.tofile says it


def test_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "--results_dir")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_unwritable_folder_is_named_with_its_flag_and_the_reason(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--x .*file: can't write there \(File exists\)"):
        check_writable(tmp_path / "file", "--x")
    with pytest.raises(OSError, match=r"--x .*sub: can't write there \(Not a directory\)"):
        check_writable(tmp_path / "file" / "sub", "--x")

    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"can't write there \(No space left on device\)"):
        check_writable(tmp_path, "--x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
