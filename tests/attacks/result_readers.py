"""The readers of what main.py has left: records of classes, results.json, kept features."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_extractors.feature_cache import Grid, read_kept
from tests.attacks.mutations import damaged_member, tampered_json
from tests.attacks.readers import Reader
from utils.metrics import METRICS
from utils.report.runs import ResultsError, read_run
from utils.results import RESULT_FIELDS, RESULTS_NAME, ClassRecord

VALUES = {metric.key: 0.5 for metric in METRICS}
RESULT = {
    **dict.fromkeys(RESULT_FIELDS),
    **VALUES,
    **{"seconds": {"predict": 1.5}, "memory_mb": {"predict": None}, "counts": {"train": 3}, "device": "cpu"},
    **{"remarks": [], "kinds": {}, "skipped_samples": [{"path": "a", "reason": "b"}]},
}
HEADER = {
    "method_name": "DINO",
    "row": "DINO",
    "random_weights": False,
    "weights": {"rgb": "a"},
    "settings": {"seed": 0},
}
RECORD = {
    "header": HEADER,
    "data": {"fingerprint": "a"},
    "result": RESULT,
    "failure": None,
    "run_complete": True,
}
RESULTS = {**HEADER, "complete": True, "classes": {"bagel": RESULT}, "failed_classes": {"rope": "no sample"}}
SOURCE = ["000.png 100 5", "000.tiff 200 6"]
GRID = Grid(4, 6)


def _json(value: Any) -> list[bytes]:
    return [json.dumps(value, indent=indent).encode() for indent in (None, 2)]


def _features() -> list[bytes]:
    about = json.dumps({"source": SOURCE, "remarks": ["odd"]}).encode()
    file = io.BytesIO()
    np.savez(
        file,
        rows=np.arange(30, dtype=np.float32).reshape(5, 6),
        row_of_patch=np.arange(16, dtype=np.int32) % 5,
        about=np.frombuffer(about, np.uint8),
    )
    return [file.getvalue()]


def _are_features(found: Any) -> bool:
    if found is None:
        return True
    patches, remarks = found
    in_range = bool(((patches.row_of_patch >= 0) & (patches.row_of_patch < len(patches.rows))).all())
    return in_range and patches.rows.dtype in (torch.float32, torch.float64) and isinstance(remarks, tuple)


def _read_record(path: Path) -> ClassRecord | None:
    return ClassRecord.read(path)


RESULT_READERS = {
    "class record": Reader(
        "bagel.json",
        lambda: _json(RECORD),
        _read_record,
        (),
        lambda record: record is None or isinstance(record, ClassRecord),
        tampered_json,
    ),
    "results.json": Reader(
        RESULTS_NAME,
        lambda: _json(RESULTS),
        lambda path: read_run(path.parent),
        ResultsError,
        lambda run: all(isinstance(name, str) for name in run.samples),
        tampered_json,
    ),
    "kept features": Reader(
        "000.npz",
        _features,
        lambda path: read_kept(path, SOURCE, GRID),
        (),
        _are_features,
        damaged_member,
    ),
}
