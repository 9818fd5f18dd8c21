"""Nothing that an attack has started outlives its test, whatever becomes of that."""

from __future__ import annotations

import sys
import time

import pytest

from tests.attacks.commands import Row
from tests.attacks.processes import PATIENCE_S, Started

SLEEPS_IN_A_CHILD = "-c __import__('subprocess').run(['sleep','600'],start_new_session=True)"


def fails_when_both_live(started: Started) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(started.living()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    raise AssertionError(f"{len(started.living())} live")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_and_its_children_are_killed_when_an_assertion_fails(tmp_path):
    started = Started(Row("", "", launcher=SLEEPS_IN_A_CHILD), tmp_path, tmp_path, tmp_path / "log")
    with pytest.raises(AssertionError, match="2 live"), started:
        fails_when_both_live(started)
    assert started.living() == []
    assert started.process.returncode is not None
