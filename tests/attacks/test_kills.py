"""A command that is killed at any moment, and repeated, leaves what an undisturbed run leaves."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.attacks.commands import ROWS, Row
from tests.attacks.processes import HOWS, Course, Started, ended_at, undisturbed
from tests.attacks.results import different, held_locks, snapshot, temporaries

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
KILLS_A_RUN = 2  # before it may come to its end


def work_folder(row: Row, inputs: Path, place: Path) -> Path:
    """A new folder, in which the command has not run yet."""
    work = place / "work"
    work.mkdir(parents=True)
    row.prepare(inputs, work)
    return work


def killed_and_repeated(
    row: Row, course: Course, work: Path, inputs: Path, rng: random.Random, first: int
) -> int:
    """Kill the command KILLS_A_RUN times, then let it come to its end; how often it was still at work."""
    kills = 0
    log = work.parent / "log"
    for i in range(first, first + KILLS_A_RUN):
        if row.is_done(work):
            return kills
        with Started(row, work, inputs, log) as started:
            was_at_work = ended_at(started, course.moment(rng), *HOWS[i % len(HOWS)])
            said = log.read_text(encoding="utf-8")
            assert not started.left(), f"processes live on; {said}"
            assert not held_locks(work)
        if not was_at_work:
            assert started.process.returncode == 0, said
            return kills
        kills += 1
    if not row.is_done(work):
        with Started(row, work, inputs, log) as started:
            assert started.wait() == 0, log.read_text(encoding="utf-8")
            assert not started.left()
    return kills


@pytest.mark.parametrize("name", ROWS)
def test_a_killed_command_that_is_repeated_leaves_the_files_of_an_undisturbed_run(
    name, inputs, moments, figures, tmp_path
):
    row, rng = ROWS[name], random.Random(name)
    work = work_folder(row, inputs, tmp_path / "undisturbed")
    course = undisturbed(row, work, inputs, tmp_path / "undisturbed/log")
    expected = snapshot(work)
    kills = attempts = 0
    while kills < moments and attempts < 4 * moments:
        work = work_folder(row, inputs, tmp_path / f"attempt_{attempts}")
        kills += killed_and_repeated(row, course, work, inputs, rng, attempts)
        attempts += KILLS_A_RUN
        assert different(snapshot(work), expected) == []
        assert not temporaries(work)
    assert kills > 0, f"it had always ended before, in {attempts} attempts"
    figures.append(f"{name}: killed {kills} times, {len(expected)} files equal after each")
