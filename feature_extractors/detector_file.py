"""A fitted detector in one file: safetensors, whose metadata says in JSON what it was fitted with.

Reading it runs no code. Tensors: `bank.<source>.rows` (n, D); `bank.<source>.standardization` (2,) mean and std;
for one-class SVMs `decision.<image or pixel>` (2 K + 1,): the factors, the coefficients, the offset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from feature_extractors.calibration import Calibration
from feature_extractors.decision import Decision, LinearScore, OneClassDecision, SumDecision
from feature_extractors.detector import Detector
from feature_extractors.memory_bank.bank import MemoryBank, ScoreRule
from feature_extractors.memory_bank.training_patches import Standardization
from feature_extractors.settings import Settings
from utils.files import atomic_path, in_short
from utils.schema import check_fields
from utils.structures import Modality

FORMAT = "m3dm-detector"
FORMAT_VERSION = 1
METADATA_KEY = "m3dm"
RowsDtype = Literal["float32", "float16"]
ROW_TYPES = (torch.float16, torch.float32, torch.float64)


class DetectorFileError(ValueError):
    """A detector's file is missing, damaged, of another format, or does not fit what it is to be used with."""


@dataclass(frozen=True)
class Header:
    """What a detector was fitted with.

    All settings, where the weights came from, versions, counts of samples; its calibration, where good parts were held
    out for one; how its data set was preprocessed, where that is recorded.
    """

    settings: dict[str, Any]
    weights: dict[str, str]
    versions: dict[str, str]
    counts: dict[str, int]
    calibration: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None
    sha256: str = ""  # of all other fields and the tensors
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


def write_detector(path: Path, detector: Detector, header: Header, dtype: RowsDtype = "float32") -> None:
    """Write a detector atomically, with a checksum of everything in the header.

    `dtype` "float32" keeps the bank rows as they are (FPFH's are float64), "float16" rounds them. Raises ValueError
    for rows that do not fit float16.
    """
    tensors = detector_tensors(detector, dtype)
    values = asdict(header)
    values["sha256"] = checksum(values, tensors)
    # safetensors' own writer has a temporary of its own beside the file, which a kill would leave there
    content = save(tensors, {METADATA_KEY: json.dumps(values, allow_nan=False)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_header(path: Path) -> tuple[Header, Settings]:
    """What a file says of its detector. Raises DetectorFileError."""
    return _read(path, with_tensors=False)[:2]


def read_detector(path: Path, device: torch.device) -> tuple[Detector, Header, Settings]:
    """The detector of a file, its rows on `device`. Raises DetectorFileError."""
    header, settings, tensors = _read(path, with_tensors=True)
    try:
        return detector_of(tensors, settings, device), header, settings
    except (KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _read(path: Path, *, with_tensors: bool) -> tuple[Header, Settings, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise DetectorFileError(
            f"{path}: no such file; fit a detector and save it (main.py --save_detector, or M3DM.save)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, (file.metadata() or {}).get(METADATA_KEY, ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except DetectorFileError:
        raise
    except Exception as error:  # safetensors has no error class of its own for all that a file may hold
        raise _damaged(path, error) from error
    if with_tensors and checksum(asdict(header), tensors) != header.sha256:
        raise _damaged(path, "it does not hold what was written")
    try:
        if header.calibration is not None:
            Calibration.from_dict(header.calibration)
        return header, Settings.from_dict(header.settings), tensors
    except (ValueError, OverflowError) as error:
        reason = in_short(str(error))
        raise DetectorFileError(
            f"{path}: its settings or thresholds are not known here ({reason})"
        ) from error


def _header(path: Path, text: str) -> Header:
    if not text:
        raise DetectorFileError(
            f"{path}: is a safetensors file, but none of a detector; save one with M3DM.save"
        )
    values = json.loads(text)
    version = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DetectorFileError(
            f"{path}: has format {version}, newer than the {FORMAT_VERSION} that is known here; update the project"
        )
    check_fields(values, {item.name: get_type_hints(Header)[item.name] for item in fields(Header)})
    if values["format"] != FORMAT or version != FORMAT_VERSION:
        raise ValueError(f"format {values['format']!r:.40} {version}")
    return Header(**values)


def _damaged(path: Path, reason: object) -> DetectorFileError:
    return DetectorFileError(
        f"{path}: is no detector file, or is cut off or damaged ({in_short(str(reason))}); fit and save it again"
    )


def detector_tensors(detector: Detector, dtype: RowsDtype = "float32") -> dict[str, torch.Tensor]:
    """What a detector's file holds, by name, on the CPU; "float32" keeps the rows' own dtype."""
    tensors = {}
    for source, bank in detector.banks.items():
        tensors[f"bank.{source}.rows"] = _stored_rows(bank.rows, dtype)
        scalars = [bank.standardization.mean, bank.standardization.std]
        tensors[f"bank.{source}.standardization"] = torch.tensor(scalars, dtype=torch.float64)
    decision = detector.decision
    if isinstance(decision, OneClassDecision):
        for name, factors, svm in (
            ("image", decision.score_factors, decision.image),
            ("pixel", decision.map_factors, decision.pixel),
        ):
            tensors[f"decision.{name}"] = torch.from_numpy(np.concatenate([factors, svm.coef, [svm.offset]]))
    return tensors


def _stored_rows(rows: torch.Tensor, dtype: RowsDtype) -> torch.Tensor:
    stored = rows.detach().cpu().contiguous()
    if dtype == "float16":
        stored = stored.half()
        if not torch.isfinite(stored).all():
            raise ValueError("bank rows do not fit float16; save the detector in float32")
    return stored


def detector_of(tensors: Mapping[str, torch.Tensor], settings: Settings, device: torch.device) -> Detector:
    """The detector that `detector_tensors` took apart. Raises KeyError or ValueError for what is none of its."""
    tensors = dict(tensors)
    rule = ScoreRule.of(settings)
    banks: dict[Modality, MemoryBank] = {}
    for source in settings.method.sources:
        rows, scalars = tensors.pop(f"bank.{source}.rows"), tensors.pop(f"bank.{source}.standardization")
        if rows.ndim != 2 or rows.dtype not in ROW_TYPES or scalars.shape != (2,) or not _scales(scalars):
            raise ValueError(
                f"bank {source} has rows {tuple(rows.shape)} of {rows.dtype}, scalars {scalars.tolist()}"
            )
        if rows.shape[1] != settings.dim(source):
            raise ValueError(
                f"bank {source} has {rows.shape[1]} dims, its backbones give {settings.dim(source)}"
            )
        mean, std = scalars.tolist()
        banks[source] = MemoryBank(rows.to(device), Standardization(mean, std), rule)
    decision: Decision = SumDecision()
    if settings.method.decision == "ocsvm":
        (score_factors, image), (map_factors, pixel) = (
            _linear_score(tensors.pop(f"decision.{name}"), len(banks)) for name in ("image", "pixel")
        )
        decision = OneClassDecision(score_factors, map_factors, image, pixel)
    if tensors:
        raise ValueError(f"tensors that no detector of {settings.method_name} has: {', '.join(tensors)}")
    return Detector(banks, decision)


def _scales(scalars: torch.Tensor) -> bool:
    """Whether a mean and a standard deviation can standardise."""
    return bool(torch.isfinite(scalars).all() and scalars[1] > 0)


def _linear_score(stored: torch.Tensor, num_banks: int) -> tuple[np.ndarray, LinearScore]:
    if stored.shape != (2 * num_banks + 1,) or not torch.isfinite(stored).all():
        raise ValueError(f"a decision of {tuple(stored.shape)} for {num_banks} banks, or not finite")
    values = stored.double().numpy()
    factors = values[:num_banks].astype(np.float32)
    return factors, LinearScore(values[num_banks:-1], float(values[-1]))


def checksum(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a header's fields but for `sha256` itself, and of the tensors."""
    fields_of_it = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(fields_of_it, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
