"""What the preprocessing commands share: the record, the workers, the summary, the exit status."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from utils.console import one_line
from utils.files import stamp
from utils.image_files import SampleFileError
from utils.preprocess.record import RECORD_NAME, Header, SampleRecord, changed, open_record, write_part
from utils.preprocess.sample import NO_POINTS, SCATTERED
from utils.preprocess.workers import run_jobs
from utils.progress import tracked
from utils.signals import INTERRUPTED, TERMINATED, Terminated, ended_by_sigterm

EXAMPLES_SHOWN = 5  # of each oddity
UNUSABLE = {NO_POINTS, SCATTERED}  # oddities after which a sample shows no part


@dataclass(frozen=True)
class Converted:
    """One sample's new files, contents by path below the target; the report's "odd" says what was odd, by kind.

    source: stamps of the files that it was made of, from before they were read.
    """

    files: dict[str, bytes]
    report: dict[str, Any]
    source: list[str]


@dataclass(frozen=True)
class Preprocessing:
    """What differs from one preprocessing to another.

    names: all samples, as the record calls them, <class>/...; convert: a sample's new files, called in other
    processes, raises SampleFileError; stamps: of a sample's files in the source, "" for one that is not there;
    parameters: what decides the files beside the data, kept in the record; in_place: the target is the source.
    """

    names: list[str]
    convert: Callable[[str], Converted]
    stamps: Callable[[str], list[str]]
    parameters: Header
    in_place: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one sample: the files it has now as parts, its report and its source's stamps, or an error."""

    name: str
    files: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    source: list[str] = field(default_factory=list)
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


def refuse_shared_files(targets: Iterable[Path], sources: Iterable[Path] = ()) -> None:
    """Raises ValueError when links make two of the files (or folders) to be written one, or one of them a source."""
    real_folder = cache(Path.resolve)  # it has many samples

    def real(path: Path) -> Path:
        return Path(os.path.realpath(path)) if path.is_symlink() else real_folder(path.parent) / path.name

    taken = {real(path): path for path in sources}
    for path in targets:
        other = taken.setdefault(real(path), path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} are the same file, by a link: one would be written over the other; remove the link"
            )


def preprocess(job: Preprocessing, target: Path, num_workers: int, progress: bool = True) -> Summary:
    """Convert the samples that the record in `target` does not have yet; those that fail do not stop the others.

    A sample of which the source changed since is converted anew; in place, where there is no source any more, it is
    an error. Raises RecordError when `target` holds other results, and OSError when it can't be written.
    """
    errors: list[str] = []
    with open_record(target, job.parameters) as record:
        if job.in_place:
            _refuse_originals(job, record, target)
        else:
            _forget_outdated(job, record)
            errors += _gone(job, record, target)
        errors += _without_part(job, record)
        pending = [name for name in job.names if name not in record.entries]
        attempt = partial(convert_to_parts, job.convert, target, draft=record.draft)
        with closing(run_jobs(attempt, pending, num_workers)) as outcomes:
            for outcome in tracked(outcomes, len(pending), "preprocessed", shown=progress):
                if outcome.error:
                    errors.append(outcome.error)
                else:
                    record.commit(outcome.name, outcome.files, outcome.report, outcome.source)
        reports = {name: record.entries[name]["report"] for name in job.names if name in record.entries}
    done_before = len(job.names) - len(pending)
    return Summary(len(reports) - done_before, done_before, reports, errors)


def _refuse_originals(job: Preprocessing, record: SampleRecord, root: Path) -> None:
    """Raises RecordError when one of the files that a sample was made of, by size and time, is back in its place."""
    for name in job.names:
        if name in record.entries:
            source = record.entries[name].get("source", [])
            for path in record.files_of(name):
                if stamp(path) in source:
                    raise changed(path, root)


def _forget_outdated(job: Preprocessing, record: SampleRecord) -> None:
    """Let samples of which the source changed be made anew, and those that are missing in the target."""
    for name in job.names:
        entry = record.entries.get(name)
        if entry and (entry.get("source") != job.stamps(name) or not record.files_of(name)):
            record.forget(name)


def _gone(job: Preprocessing, record: SampleRecord, target: Path) -> list[str]:
    """An error for each sample in the target that its class in the source does not have any more."""
    names, classes = set(job.names), {name.split("/")[0] for name in job.names}
    return [
        f"{target}: holds {name}, which the source does not have any more; delete its files, or main.py reads them"
        for name in record.entries
        if name not in names
        and name.split("/")[0] in classes
        and not any(job.stamps(name))
        and record.files_of(name)
    ]


def _without_part(job: Preprocessing, record: SampleRecord) -> list[str]:
    """An error for each sample that version 0.1.0 has written although no part was found in it."""
    problems = {
        name: _no_part(record.entries[name]["report"]) for name in job.names if name in record.entries
    }
    return [
        f"{name}: was written without its part ({problem}); unpack its original files, delete its line in "
        f"{RECORD_NAME} and run again"
        for name, problem in problems.items()
        if problem
    ]


def convert_to_parts(
    convert: Callable[[str], Converted], target: Path, name: str, draft: str = ""
) -> Outcome:
    """Write one sample's files beside their final names in `target`, unless they show no part."""
    try:
        converted = convert(name)
    except SampleFileError as error:
        return Outcome(name, error=str(error))
    if problem := _no_part(converted.report):
        question = "do unit and distances suit the data?"
        return Outcome(name, error=f"{name}: not written, it shows no part ({problem}); {question}")
    for file, content in converted.files.items():
        write_part(target / file, content, draft)
    return Outcome(name, list(converted.files), converted.report, converted.source)


def describe(summary: Summary) -> str:
    """The summary in words: counts, then the oddities with a few examples of each."""
    counts = f"done now {summary.done}, done before {summary.done_before}, failed {len(summary.errors)}"
    lines = [f"Samples: {counts}"]
    odd: dict[str, list[str]] = defaultdict(list)
    for name, report in sorted(summary.reports.items()):
        for kind, detail in _odd(report).items():
            odd[kind].append(one_line(f"  {name}: {detail}"))
    for kind, examples in sorted(odd.items()):
        lines += [f"{kind} ({len(examples)}):", *examples[:EXAMPLES_SHOWN]]
        if len(examples) > EXAMPLES_SHOWN:
            lines.append(f"  and {len(examples) - EXAMPLES_SHOWN} more, see {RECORD_NAME} in the data set")
    return "\n".join(lines)


def exit_status(run: Callable[[], Summary]) -> int:
    """Run a preprocessing command to its exit status: the summary to stdout, errors in one line each to stderr."""
    try:
        with ended_by_sigterm():
            summary = run()
        print(describe(summary), flush=True)
    except (OSError, ValueError) as error:
        return _failed(f"error: {error}")
    except BrokenProcessPool:
        return _failed(
            "error: a worker was killed, perhaps for lack of memory; the same command continues, "
            "with fewer --num_workers if it happens again"
        )
    except KeyboardInterrupt:
        return _failed("interrupted; the same command continues where this run stopped", INTERRUPTED)
    except Terminated:
        return _failed("ended by SIGTERM; the same command continues where this run stopped", TERMINATED)
    for message in summary.errors:
        _failed(f"failed: {message}")
    return 1 if summary.errors else 0


def _no_part(report: dict[str, Any]) -> str:
    """What shows that there is no part in a sample, or ""."""
    return ", ".join(f"{kind}: {detail}" for kind, detail in _odd(report).items() if kind in UNUSABLE)


def _odd(report: dict[str, Any]) -> dict[str, str]:
    """Details of what was odd about a sample, by kind."""
    return report.get("odd", {})


def _failed(message: str, status: int = 1) -> int:
    print(one_line(message), file=sys.stderr)
    return status
