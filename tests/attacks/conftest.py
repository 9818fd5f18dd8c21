"""The data of all attacks, and their figures at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.attacks.commands import write_inputs

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data that the commands work on."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def moments() -> int:
    """How many moments a command is attacked at."""
    return int(os.environ.get("M3DM_ATTACKS", "4"))


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the summary."""
    return pytestconfig.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures of the attacks that held."""
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)
