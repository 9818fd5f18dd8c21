"""What the attacks look for is seen where it is."""

from __future__ import annotations

import sys

import pytest

from tests.attacks import results
from tests.attacks.results import held_locks
from utils.files import try_lock


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
@pytest.mark.parametrize("name", [".saving", ".locks/classes/bagel", ".locks/of_all/join", ".at_work_1234/0"])
def test_a_lock_is_seen_as_long_as_it_is_held(name, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PATIENCE_S", 0)
    path = tmp_path / "results" / name
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        assert try_lock(file)
        assert held_locks(tmp_path) == [path]
    assert held_locks(tmp_path) == []
