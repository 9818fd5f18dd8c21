"""Locks and atomic writing."""

import pytest

from utils.files import alone_with, atomic_path, try_lock

fcntl = pytest.importorskip("fcntl", reason="no locks on this system")


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
    with pytest.raises(OSError, match=r"file\.txt: can't be written .*disk full"), atomic_path(path):
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
