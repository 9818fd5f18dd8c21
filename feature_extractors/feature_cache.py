"""Extracted features on disk (`--features`), so that a second method, seed or coreset needs no network.

A folder a backbone with its weights and settings, `rgb-<name>-<digits>/`, in which `identity.json` says what it is;
there a file a sample, `<class>/<split>/<kind>/rgb/<stem>.npz`: the distinct rows as they were extracted, so that
scores are equal to the bit. A file also holds sizes and times of the sample's own files; where these have changed,
or where the file is damaged, the sample is extracted anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from feature_extractors.networks import RANDOM, attention
from feature_extractors.settings import Settings
from models.backbones import PointOps
from models.checkpoints import ArrayHeader, CheckpointError, decoded, read_numpy_headers
from utils.files import atomic_path, write_json
from utils.schema import check_fields
from utils.structures import Modality, Patches, SampleFiles

FORMAT_NAME = "m3dm-features-1"
IDENTITY_NAME = "identity.json"
ARRAYS = ("rows", "row_of_patch", "about")
ANEW = "it is extracted anew"
KEPT: tuple[Modality, ...] = ("rgb", "xyz")  # fused ones are made of these
DTYPES = ("float32", "float64")  # FPFH's are the latter
LARGEST_ABOUT = 1 << 20  # bytes
XYZ_QUIRKS = ("batchnorm", "interpolation")


@dataclass(frozen=True)
class KeptSample:
    """A sample's features as they were extracted: patches of each backbone, on the CPU."""

    patches: dict[Modality, Patches]
    remarks: tuple[str, ...] = ()


class Grid(NamedTuple):
    """side * side patches of so many dims."""

    side: int
    dim: int


class FeatureCache:
    """Reads and writes the features of the backbones that a method needs; any number of processes may at once.

    weights: where each backbone's are from, as `Networks.origins` says. Raises ValueError where features are drawn
    at random, and OSError when the folder can't be written to.
    """

    def __init__(
        self, folder: Path, settings: Settings, weights: Mapping[str, str], point_ops: PointOps = "cpu"
    ) -> None:
        if settings.quirks.drop_path == "live":
            raise ValueError(
                "--features: with --quirk drop_path=live (--protocol released) features are drawn anew in each run; "
                "drop one of the two"
            )
        self._folders: dict[Modality, Path] = {}
        self._grids: dict[Modality, Grid] = {
            "rgb": Grid(settings.rgb_side, settings.dim("rgb")),
            "xyz": Grid(settings.xyz_side, settings.dim("xyz")),
        }
        for modality in KEPT:
            if modality in settings.method.backbones:
                identity = identity_of(modality, settings, weights, point_ops)
                self._folders[modality] = folder / _folder_name(modality, identity)
                _write_once(self._folders[modality] / IDENTITY_NAME, identity)

    def read(self, sample: object) -> KeptSample | None:
        """The sample's features; None where they have to be extracted."""
        if not isinstance(sample, SampleFiles):
            return None
        patches: dict[Modality, Patches] = {}
        remarks: tuple[str, ...] = ()
        source = _source(sample)
        for modality, folder in self._folders.items():
            found = read_kept(_path(folder, sample), source, self._grids[modality])
            if found is None:
                return None
            patches[modality], remarks = found
        return KeptSample(patches, remarks)

    def write(self, sample: object, patches: Mapping[Modality, Patches], remarks: tuple[str, ...]) -> None:
        """Keep a sample's features. Raises OSError."""
        if not isinstance(sample, SampleFiles):
            return
        for modality, folder in self._folders.items():
            _write(_path(folder, sample), patches[modality], {"source": _source(sample), "remarks": remarks})


def identity_of(
    modality: Modality, settings: Settings, weights: Mapping[str, str], point_ops: PointOps
) -> dict[str, Any]:
    """What a backbone's features depend on besides the data."""
    identity = {
        "format": FORMAT_NAME,
        "backbone": settings.rgb_backbone_name if modality == "rgb" else settings.xyz_backbone_name,
        "weights": weights[modality],
        "img_size": settings.img_size,
        "precision": settings.precision,
        "attention": attention(),
    }
    if weights[modality].startswith(RANDOM):  # drawn one network after the other
        identity["networks"] = sorted(settings.method.backbones)
    if modality == "xyz":
        identity |= {
            "num_group": settings.num_group,
            "group_size": settings.group_size,
            "point_ops": point_ops,
        }
        identity |= {name: getattr(settings.quirks, name) for name in XYZ_QUIRKS}
    return identity


def _folder_name(modality: Modality, identity: Mapping[str, Any]) -> str:
    digits = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return f"{modality}-{identity['backbone']}-{digits}"


def _path(folder: Path, sample: SampleFiles) -> Path:
    class_folder = sample.rgb.parents[len(Path(sample.path).parts) - 1]
    return folder / class_folder.name / Path(sample.path).with_suffix(".npz")


def _source(sample: SampleFiles) -> list[list[int]]:
    """Sizes and times of the files that the features come from."""
    stats = [path.stat() for path in (sample.rgb, sample.xyz)]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _write_once(path: Path, identity: Mapping[str, Any]) -> None:
    if not path.exists():
        write_json(path, identity)


def _write(path: Path, patches: Patches, about: Mapping[str, Any]) -> None:
    arrays = {
        "rows": patches.rows.cpu().numpy(),
        "row_of_patch": patches.row_of_patch.cpu().numpy().astype(np.int32),
        "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
    }
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


def read_kept(path: Path, source: list[list[int]], grid: Grid) -> tuple[Patches, tuple[str, ...]] | None:
    """Patches and remarks of a file, if it is whole and of these files; None if not."""
    try:
        headers = read_numpy_headers(path, ANEW)
        if not _fits(headers, grid):
            return None
        with decoded(path, ".npz file", ANEW), np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            check_fields(about, {"source": list[list[int]], "remarks": list[str]})
            rows = torch.from_numpy(file["rows"]).clone()  # as torch aligns it
            row_of_patch = torch.from_numpy(file["row_of_patch"]).long()
            remarks = tuple(about["remarks"])
    except CheckpointError:
        return None
    of_these_files = about["source"] == source
    in_range = int(row_of_patch.min()) >= 0 and int(row_of_patch.max()) < len(rows)
    return (Patches(rows, row_of_patch, grid.side), remarks) if of_these_files and in_range else None


def _fits(headers: Mapping[str, ArrayHeader], grid: Grid) -> bool:
    """Whether the arrays are, by their headers, as large as such features may be."""
    if set(headers) != set(ARRAYS) or headers["row_of_patch"] != ((grid.side**2,), np.dtype(np.int32)):
        return False
    rows, about = headers["rows"], headers["about"]
    return (
        rows.dtype.name in DTYPES
        and len(rows.shape) == 2
        and rows.shape[0] <= grid.side**2 + 1
        and rows.shape[1] == grid.dim
        and about.dtype.name == "uint8"
        and math.prod(about.shape) <= LARGEST_ABOUT
    )
