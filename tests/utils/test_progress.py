"""Progress: lines where there is no terminal, a bar where there is one."""

import io
import re

import pytest

from utils import progress as module
from utils.observer import ClassReport
from utils.progress import progress, tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("total", "expected"), [(244, 10), (10, 10), (3, 3), (1, 1), (0, 0)])
def test_without_a_terminal_there_is_a_line_every_tenth_of_the_work(total, expected, capsys):
    assert list(tracked(range(total), total, "bagel train")) == list(range(total))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == expected
    assert all(line.startswith("bagel train: ") for line in lines)


def test_a_line_names_the_work_how_much_is_done_of_it_and_the_seconds_left(clock, capsys):
    with progress("bagel train", 40) as advance:
        clock[0] += 7
        advance(4)
        clock[0] += 63
        advance(36)
    assert capsys.readouterr().err.splitlines() == [
        "bagel train: 4 of 40 samples, 63 s left",
        "bagel train: 40 of 40 samples, took 70 s",
    ]


def test_what_was_done_before_does_not_shorten_the_estimate(clock, capsys):
    with progress("file", 100_000_000, "B", done=50_000_000) as advance:
        clock[0] += 10
        advance(25_000_000)
    assert capsys.readouterr().err == "file: 75.0 of 100.0 MB, 10 s left\n"


def test_work_of_unknown_size_and_work_that_is_not_shown_write_nothing(capsys):
    for total, shown in ((None, True), (3, False)):
        with progress("file", total, shown=shown) as advance:
            advance(3)
    assert capsys.readouterr().err == ""


def test_a_closed_stderr_is_no_trouble(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", None)
    assert list(tracked(range(3), 3, "bagel train")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_a_bar_on_one_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    list(tracked(range(244), 244, "epoch 0", "batch"))
    assert re.search(r"epoch 0: 100%.*244/244", terminal.getvalue())
    assert terminal.getvalue().count("\n") == 1


def test_a_class_report_names_class_and_stage_in_a_log_file(capsys):
    with ClassReport().progress("rope test", 2) as advance:
        advance(1)
        advance(1)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("rope test: 1 of 2 samples, ")
    assert last.startswith("rope test: 2 of 2 samples, took ")
