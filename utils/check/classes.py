"""The samples of a class, and of all classes, judged together: units, preprocessing, sizes, equal files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from utils.check.findings import Finding
from utils.check.sample import Facts
from utils.check.tree import Entry, relative_name
from utils.plausibility import unit_of_distance

SEPARATE = "keep raw and preprocessed data apart: unpack the originals anew and preprocess all of them"
ONE_UNIT = "write all samples in one unit"
TO_METRES = "write them in metres: python utils/convert.py --input ROOT --tree --output DIR --unit mm"
PREPROCESS = "python utils/preprocessing.py ROOT"
HASHED = ("rgb", "xyz")  # masks without a defect are all equal


def class_findings(name: str, facts: list[Facts]) -> list[Finding]:
    """What only the samples of a class together show."""
    return [*_sizes(name, facts), *_states(name, facts), *_units(name, facts)]


def summary_of(facts: list[Facts]) -> dict[str, Any]:
    """Counts, sizes, unit, state and value ranges of a class, as --json prints them."""
    seen = [one for one in facts if one.distance is not None]
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for (split, kind), count in Counter((one.entry.split, one.entry.kind) for one in facts).items():
        counts[split][kind] = count
    shares = [one.valid_share for one in facts if one.valid_share is not None]
    states, units = {one.state for one in seen}, {_unit(one) for one in seen}
    return {
        "samples": dict(counts),
        "image_sizes": dict(Counter(f"{one.size[0]}x{one.size[1]}" for one in facts if one.size)),
        "state": states.pop() if len(states) == 1 else None,
        "unit": units.pop() if len(units) == 1 else None,
        "median_distance": float(np.median([one.distance for one in seen])) if seen else None,
        "low": np.min([one.low for one in seen if one.low], axis=0).tolist() if seen else None,
        "high": np.max([one.high for one in seen if one.high], axis=0).tolist() if seen else None,
        "valid_share": [min(shares), float(np.median(shares)), max(shares)] if shares else None,
    }


def across_classes(root: Path, summaries: dict[str, dict[str, Any]]) -> list[Finding]:
    """Classes that differ in what a data set has once."""
    findings = []
    for key, code, remedy in (("state", "mixed_state", SEPARATE), ("unit", "mixed_units", ONE_UNIT)):
        names: dict[str, list[str]] = defaultdict(list)
        for name, summary in summaries.items():
            if summary[key] is not None:
                names[summary[key]].append(name)
        if len(names) > 1:
            listed = "; ".join(f"{value}: {', '.join(classes)}" for value, classes in sorted(names.items()))
            findings.append(Finding(code, relative_name(root, root), f"classes differ, {listed}", remedy))
    return findings


def shared_sizes(samples: Iterable[Entry]) -> set[tuple[str, int]]:
    """Folder and size of the files that have the size of another one and so may be equal to it."""
    counts = Counter((part, entry.sizes[part]) for entry in samples for part in HASHED if part in entry.files)
    return {key for key, count in counts.items() if count > 1}


def equal_files(root: Path, facts: Iterable[Facts]) -> list[Finding]:
    """Files of the same content under two names; between training and test that is an error."""
    alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for one in facts:
        for part, digest in one.digests.items():
            alike[part, digest].append(one.entry)
    findings = []
    for (part, _), entries in alike.items():
        for entry in entries[1:]:
            findings.append(_equal(root, part, _partner(entry, entries), entry))
    return findings


def _partner(entry: Entry, entries: list[Entry]) -> Entry:
    """The equal sample to name: of the other of training and test if there is one, else the first."""
    wanted = {"test": "train", "train": "test"}.get(entry.split)
    return next((other for other in entries if other.split == wanted), entries[0])


def _equal(root: Path, part: str, first: Entry, second: Entry) -> Finding:
    names = [relative_name(entry.files[part], root) for entry in (first, second)]
    if {first.split, second.split} == {"train", "test"}:
        remedy = "take it out of one: a part that was learned is scored too well"
        return Finding("train_in_test", names[1], f"is the same file as {names[0]}", remedy)
    return Finding("duplicate", names[1], f"is the same file as {names[0]}")


def _sizes(name: str, facts: list[Facts]) -> list[Finding]:
    sizes = Counter(f"{one.size[0]}x{one.size[1]}" for one in facts if one.size)
    if len(sizes) < 2:
        return []
    listed = ", ".join(f"{size} ({count})" for size, count in sizes.most_common())
    return [Finding("image_sizes", name, f"images of several sizes: {listed}")]


def _states(name: str, facts: list[Facts]) -> list[Finding]:
    by_state = {state: [one for one in facts if one.state == state] for state in ("raw", "preprocessed")}
    raw, done = by_state["raw"], by_state["preprocessed"]
    if raw and done:
        few = min(raw, done, key=len)
        problem = (
            f"is {few[0].state}, {len(facts) - len(few)} of {name}'s {len(facts)} samples are not"
            f"{': ' + few[0].reason if few is raw else ''}"
        )
        return [Finding("mixed_state", _cloud_name(one), problem, SEPARATE) for one in few]
    if raw:
        return [Finding("raw", name, f"is not preprocessed: {raw[0].reason}", PREPROCESS)]
    return []


def _units(name: str, facts: list[Facts]) -> list[Finding]:
    units = {unit: [one for one in facts if _unit(one) == unit] for unit in ("m", "mm")}
    metres, millimetres = units["m"], units["mm"]
    if metres and millimetres:
        few = min(metres, millimetres, key=len)
        return [
            Finding(
                "mixed_units", _cloud_name(one), f"is in {_unit(one)}, others of {name} are not", ONE_UNIT
            )
            for one in few
        ]
    distance = [one.distance for one in facts if one.distance is not None]
    if millimetres:
        problem = f"is in millimetres: a median distance of {np.median(distance):.0f}"
        if any(one.state == "raw" for one in millimetres):
            return [Finding("raw_millimetres", name, problem, f"{PREPROCESS} --unit mm")]
        return [Finding("unit", name, problem, TO_METRES)]
    if distance and not metres:
        problem = f"has a median distance of {np.median(distance):.3g}: metres or millimetres?"
        return [Finding("unknown_unit", name, problem, "say it to each command with --unit m or --unit mm")]
    return []


def _unit(facts: Facts) -> str | None:
    if facts.stated_unit is not None:
        return facts.stated_unit if facts.distance is not None else None
    try:
        return unit_of_distance(facts.distance) if facts.distance is not None else None
    except ValueError:  # fits both
        return None


def _cloud_name(facts: Facts) -> str:
    entry = facts.entry
    return f"{entry.class_name}/{entry.split}/{entry.kind}/xyz/{entry.files['xyz'].name}"
