"""Types of command-line values, and how --help shows defaults."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; 0 is the least")
    return value


def seed(text: str) -> int:
    """What all the random generators take."""
    value = int(text)
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not within 0..{LARGEST_SEED}")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def natural_float(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def finite_float(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def not_empty(text: str) -> str:
    """A text, which a shell makes empty when it replaces a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; was a variable of the shell not set?")
    return text


def named_path(text: str) -> Path:
    """A file or a folder; an empty text would be the current folder."""
    return Path(not_empty(text))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in ("", argparse.SUPPRESS, []):
            return action.help
        return super()._get_help_string(action)
