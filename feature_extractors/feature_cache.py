"""Extracted features on disk (`--features`), so that a second method, seed or coreset needs no network.

A folder a backbone with its weights, settings and packages, `rgb-<name>-<digits>/`, in which `identity.json` says what
it is; there a file a sample, `<data set>/<class>/<split>/<kind>/rgb/<stem>.npz`: the distinct rows as they were
extracted, so that scores are equal to the bit. A file also holds sizes and times of the sample's own files; where
these have changed, or where the file is damaged, the sample is extracted anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from feature_extractors.networks import RANDOM, attention
from feature_extractors.quirks import FEATURES_ARE_DRAWN
from feature_extractors.settings import Settings
from models.backbones import PointOps
from models.checkpoints import ArrayHeader, CheckpointError, decoded, read_numpy_headers
from utils.files import atomic_path, stamp, write_json
from utils.schema import check_fields
from utils.structures import Modality, Patches, SampleFiles
from utils.versions import versions

FORMAT_NAME = "m3dm-features-1"
IDENTITY_NAME = "identity.json"
ARRAYS = ("rows", "row_of_patch", "about")
ANEW = "it is extracted anew"
KEPT: tuple[Modality, ...] = ("rgb", "xyz")  # fused ones are made of these
DTYPES = ("float32", "float64")  # FPFH's are the latter
LARGEST_ABOUT = 1 << 20  # bytes
NOT_OF_FEATURES = ("scikit-learn",)  # of the packages that numbers depend on
XYZ_QUIRKS = ("batchnorm", "interpolation")


@dataclass(frozen=True)
class Kept:
    """What is kept of a sample: patches of some backbones, on the CPU, and what was odd about it.

    source: stamps of the sample's files when they were looked at, before anything is read from them.
    """

    patches: Mapping[Modality, Patches] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


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
        if settings.quirks.draws_features:
            raise ValueError(FEATURES_ARE_DRAWN)
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

    @property
    def modalities(self) -> frozenset[Modality]:
        """Those of a sample that needs no network."""
        return frozenset(self._folders)

    def read(self, sample: object) -> Kept:
        """What is known of a sample; nothing of those that are no files, or are not there."""
        if not isinstance(sample, SampleFiles):
            return Kept()
        source = (stamp(sample.rgb), stamp(sample.xyz))
        patches: dict[Modality, Patches] = {}
        remarks: tuple[str, ...] = ()
        for modality, folder in self._folders.items():
            found = read_kept(_path(folder, sample), source, self._grids[modality])
            if found is not None:
                patches[modality], told = found
                remarks += told
        return Kept(patches, tuple(dict.fromkeys(remarks)), source)

    def write(
        self,
        sample: object,
        patches: Mapping[Modality, Patches],
        remarks_of: Callable[[Modality], tuple[str, ...]],
        known: Kept,
    ) -> None:
        """Keep what was not `known` of a sample, with the remarks that go with each modality. Raises OSError."""
        if not isinstance(sample, SampleFiles):
            return
        for modality in self.modalities - set(known.patches):
            about = {"source": known.source, "remarks": remarks_of(modality)}
            _write(_path(self._folders[modality], sample), patches[modality], about)


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
        "versions": {name: version for name, version in versions().items() if name not in NOT_OF_FEATURES},
    }
    if weights[modality].startswith(RANDOM):  # drawn one network after the other
        names = {"rgb": settings.rgb_backbone_name, "xyz": settings.xyz_backbone_name}
        identity["networks"] = [names[part] for part in sorted(settings.method.backbones)]
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
    data = class_folder.parent.resolve().name
    return folder / data / class_folder.name / Path(sample.path).with_suffix(".npz")


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


def read_kept(path: Path, source: Sequence[str], grid: Grid) -> tuple[Patches, tuple[str, ...]] | None:
    """Patches and remarks of a file, if it is whole and of these files; None if not."""
    try:
        headers = read_numpy_headers(path, ANEW)
        if not _fits(headers, grid):
            return None
        with decoded(path, ".npz file", ANEW), np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            check_fields(about, {"source": list[str], "remarks": list[str]})
            rows = torch.from_numpy(file["rows"]).clone()  # as torch aligns it
            row_of_patch = torch.from_numpy(file["row_of_patch"]).long()
            remarks = tuple(about["remarks"])
    except CheckpointError:
        return None
    of_these_files = about["source"] == list(source)
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
