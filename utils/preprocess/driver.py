"""What the preprocessing commands share: the record, the workers, the summary, the exit status."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utils.image_files import SampleFileError
from utils.preprocess.record import RECORD_NAME, Header, open_record, write_part
from utils.preprocess.sample import NO_POINTS, SCATTERED
from utils.preprocess.workers import run_jobs
from utils.progress import tracked

EXAMPLES_SHOWN = 5  # of each oddity
UNUSABLE = {NO_POINTS, SCATTERED}  # oddities after which a sample shows no part


@dataclass(frozen=True)
class Converted:
    """One sample's new files, contents by path below the target; the report's "odd" says what was odd, by kind."""

    files: dict[str, bytes]
    report: dict[str, Any]


@dataclass(frozen=True)
class Preprocessing:
    """What differs from one preprocessing to another.

    names: all samples, as the record calls them, <class>/...; convert: a sample's new files, called in other
    processes, raises SampleFileError; parameters: what decides the files beside the data, kept in the record.
    """

    names: list[str]
    convert: Callable[[str], Converted]
    parameters: Header


@dataclass(frozen=True)
class Outcome:
    """What became of one sample: the files it has now as parts and its report, or an error."""

    name: str
    files: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Summary:
    """Samples done in this run and before it; reports of all done samples by name; error messages."""

    done: int
    done_before: int
    reports: dict[str, dict[str, Any]]
    errors: list[str]


def check_target(target: Path) -> None:
    """Raises NotADirectoryError where the folder for the result is a file."""
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target}: is a file; name a folder for the result")


def preprocess(job: Preprocessing, target: Path, num_workers: int, progress: bool = True) -> Summary:
    """Convert the samples that the record in `target` does not have yet; those that fail do not stop the others.

    Raises RecordError when `target` holds other results, and OSError when it can't be written.
    """
    errors = []
    with open_record(target, job.parameters) as record:
        pending = [name for name in job.names if name not in record.entries]
        attempt = partial(convert_to_parts, job.convert, target)
        with closing(run_jobs(attempt, pending, num_workers)) as outcomes:
            for outcome in tracked(outcomes, len(pending), "preprocessed", shown=progress):
                if outcome.error:
                    errors.append(outcome.error)
                else:
                    record.commit(outcome.name, outcome.files, outcome.report)
        reports = {name: record.entries[name]["report"] for name in job.names if name in record.entries}
    done_before = len(job.names) - len(pending)
    return Summary(len(reports) - done_before, done_before, reports, errors)


def convert_to_parts(convert: Callable[[str], Converted], target: Path, name: str) -> Outcome:
    """Write one sample's files beside their final names in `target`."""
    try:
        converted = convert(name)
    except SampleFileError as error:
        return Outcome(name, error=str(error))
    for file, content in converted.files.items():
        write_part(target / file, content)
    return Outcome(name, list(converted.files), converted.report)


def describe(summary: Summary) -> str:
    """The summary in words: counts, then the oddities with a few examples of each."""
    counts = f"done now {summary.done}, done before {summary.done_before}, failed {len(summary.errors)}"
    lines = [f"Samples: {counts}"]
    odd: dict[str, list[str]] = defaultdict(list)
    for name, report in sorted(summary.reports.items()):
        for kind, detail in _odd(report).items():
            odd[kind].append(f"  {name}: {detail}")
    for kind, examples in sorted(odd.items()):
        lines += [f"{kind} ({len(examples)}):", *examples[:EXAMPLES_SHOWN]]
        if len(examples) > EXAMPLES_SHOWN:
            lines.append(f"  and {len(examples) - EXAMPLES_SHOWN} more, see {RECORD_NAME} in the data set")
    return "\n".join(lines)


def exit_status(run: Callable[[], Summary]) -> int:
    """Run a preprocessing command to its exit status: the summary to stdout, errors in one line each to stderr."""
    try:
        summary = run()
    except (OSError, ValueError) as error:
        return _failed(f"error: {error}")
    except BrokenProcessPool:
        return _failed(
            "error: a worker was killed, perhaps for lack of memory; the same command continues, "
            "with fewer --num_workers if it happens again"
        )
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this run stopped", file=sys.stderr)
        return 130
    print(describe(summary))
    errors = summary.errors + _unusable_classes(summary.reports)
    for message in errors:
        print(f"failed: {message}", file=sys.stderr)
    return 1 if errors else 0


def _unusable_classes(reports: dict[str, dict[str, Any]]) -> list[str]:
    """An error for each class in most of whose samples no part was found."""
    every = Counter(name.split("/")[0] for name in reports)
    unusable = Counter(
        name.split("/")[0] for name, report in reports.items() if UNUSABLE & _odd(report).keys()
    )
    return [
        f"{name}: {count} of {every[name]} samples show no part, only {' or '.join(sorted(UNUSABLE))}; "
        "do unit and distances suit the data?"
        for name, count in unusable.items()
        if count > every[name] / 2
    ]


def _odd(report: dict[str, Any]) -> dict[str, str]:
    """Details of what was odd about a sample, by kind."""
    return report.get("odd", {})


def _failed(message: str) -> int:
    print(message, file=sys.stderr)
    return 1
