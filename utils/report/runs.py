"""Reading what main.py left of its runs, results.json, as a file of others; runs that differ in seeds join into one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NoReturn

from utils.files import read_regular
from utils.metrics import METRICS
from utils.reporting import TABLES
from utils.results import RESULTS_NAME
from utils.schema import check_fields

RECORD: dict[str, Any] = {
    "method_name": str,
    "random_weights": bool,
    "settings": dict[str, Any],
    "complete": bool,
    "classes": dict[str, dict[str, Any]],
    "failed_classes": dict[str, str],
    "row": str,
    "dataset_path": str,
}
CLASS: dict[str, Any] = {
    **{metric.key: float | None for metric in METRICS},
    "doubt": str | None,
    "variants": dict[str, dict[str, Any]],
}
OPTIONAL = frozenset(CLASS) - {metric.key for metric in TABLES}
# beside the settings: what else metrics depend on
IDENTITY = ("dataset_type", "weights", "label_by_folder", "holdout", "point_ops", "shots", "shake")
RANDOM_WEIGHTS = " (random weights)"
Metrics = Mapping[str, float | None]


class ResultsError(ValueError):
    """A folder of results that can't be used; the message names the file."""


@dataclass(frozen=True)
class Run:
    """A row of the tables: one run, a study, or several runs joined.

    datasets: where the data were. samples: of each class the metrics of each variant, by the variant's name; a plain
    run has one variant. settings: all that metrics depend on but seeds. doubts, failed: class -> why.
    """

    folders: tuple[Path, ...]
    datasets: tuple[str, ...]
    name: str
    method_name: str
    random_weights: bool
    complete: bool
    settings: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, Metrics]]
    doubts: Mapping[str, str]
    failed: Mapping[str, str]


def read_folder(folder: Path) -> list[Run]:
    """The run of a folder; of one without results.json those of its sub-folders, joined. Raises ResultsError."""
    try:
        if (folder / RESULTS_NAME).exists():
            return [read_run(folder)]
        variants = [sub for sub in folder.iterdir() if (sub / RESULTS_NAME).is_file()]
    except OSError as error:
        raise ResultsError(f"{folder}: not a folder of results: {error.strerror}") from error
    if not variants:
        raise ResultsError(
            f"{folder}: no {RESULTS_NAME} there or in a sub-folder; has main.py written there?"
        )
    return join([read_run(sub) for sub in sorted(variants, key=_natural)])


def read_run(folder: Path) -> Run:
    """The run that a results.json describes. Raises ResultsError where it is not one."""
    path = folder / RESULTS_NAME
    try:
        record = json.loads(read_regular(path).decode("utf-8"), parse_constant=_refuse_constant)
        check_fields(record, RECORD, frozenset({"row", "dataset_path"}), closed=False)
        seeds = {**_seeds(record), **_seeds(record["settings"])}
        variant = ", ".join(f"{key} {value}" for key, value in sorted(seeds.items()))
        samples = {name: _variants(result, variant) for name, result in _checked(record["classes"])}
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: can't be used: {error}") from error
    return Run(
        folders=(folder,),
        datasets=(record["dataset_path"],) if "dataset_path" in record else (),
        name=_row_name(record),
        method_name=record["method_name"],
        random_weights=record["random_weights"],
        complete=record["complete"],
        settings=_identity(record),
        samples=samples,
        doubts={name: result["doubt"] for name, result in record["classes"].items() if result.get("doubt")},
        failed=record["failed_classes"],
    )


def join(runs: Sequence[Run]) -> list[Run]:
    """Runs of equal names and equal settings but for seeds become one; the others stay as they are, in order."""
    rows: list[Run] = []
    for run in runs:
        place = next((i for i, row in enumerate(rows) if why_apart(row, run) is None), None)
        if place is None:
            rows.append(run)
        else:
            rows[place] = _merged(rows[place], run)
    return rows


def why_apart(one: Run, other: Run) -> str | None:
    """Why two runs can't be one row; None where they can."""
    if (one.name, one.method_name) != (other.name, other.method_name):
        return "other names"
    keys = [*one.settings, *(key for key in other.settings if key not in one.settings)]
    differing = [key for key in keys if one.settings.get(key) != other.settings.get(key)]
    if differing:
        return f"they differ in {', '.join(differing)}"
    for name, variants in other.samples.items():
        if variants.keys() & one.samples.get(name, {}).keys():
            return f"both hold {name} of the same seeds"
    return None


def _merged(one: Run, other: Run) -> Run:
    names = [*one.samples, *(name for name in other.samples if name not in one.samples)]
    return replace(
        one,
        folders=one.folders + other.folders,
        datasets=tuple(dict.fromkeys(one.datasets + other.datasets)),
        complete=one.complete and other.complete,
        samples={n: {**one.samples.get(n, {}), **other.samples.get(n, {})} for n in names},
        doubts={**one.doubts, **other.doubts},
        failed={**one.failed, **other.failed},
    )


def _checked(classes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The classes, each checked. Raises ValueError naming the class."""
    for name, result in classes.items():
        try:
            check_fields(result, CLASS, OPTIONAL, closed=False)
            for values in (result, *result.get("variants", {}).values()):
                _check_metrics(values)
        except ValueError as error:
            raise ValueError(f"class {name!r:.60} {error}") from error
        yield name, result


def _check_metrics(values: Mapping[str, Any]) -> None:
    hints = {metric.key: CLASS[metric.key] for metric in METRICS if metric.key in values}
    check_fields(values, hints, closed=False)
    outside = [key for key in hints if values[key] is not None and not 0 <= values[key] <= 1]
    if outside:
        raise ValueError(f"{outside[0]} is {values[outside[0]]!r:.60}, which is not within 0..1")


def _variants(result: Mapping[str, Any], variant: str) -> dict[str, Metrics]:
    """By name; a class of a study brings its own variants."""
    return {
        name: {metric.key: values.get(metric.key) for metric in METRICS}
        for name, values in (result.get("variants") or {variant: result}).items()
    }


def _row_name(record: Mapping[str, Any]) -> str:
    name = record.get("row") or record["method_name"]
    return name + RANDOM_WEIGHTS if record["random_weights"] and RANDOM_WEIGHTS not in name else name


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one row have in common; random weights follow the seed, data may be elsewhere on other machines."""
    kept = [key for key in IDENTITY if key != "weights" or not record["random_weights"]]
    settings = {key: value for key, value in record["settings"].items() if not _is_seed(key)}
    data = PurePath(record["dataset_path"]).name if "dataset_path" in record else None
    return {**settings, "dataset_path": data, **{key: record.get(key) for key in kept}}


def _seeds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if _is_seed(key)}


def _is_seed(key: str) -> bool:
    return key.removesuffix("s").endswith(("seed", "random_state"))


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sorts seed_2 ahead of seed_10."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)([0-9]*)", path.name)]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is no metric")
