"""One sample of a data set: its files read, and judged together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from utils.check.findings import Finding
from utils.check.tree import GOOD, PUBLIC_CLASSES, Entry, relative_name
from utils.image_files import RESTORE, SampleFileError, read_mask, read_rgb, read_xyz
from utils.plausibility import Unit, looks_preprocessed, looks_raw, measured_points, silhouette_disagreement

State = Literal["raw", "preprocessed"]
FEWEST = 0.02  # share of pixels with a point: of 224 x 224 these are the 1024 groups of the point networks
EXPORT_ANEW = "export it anew"  # what RESTORE is to data that nobody can download
READERS: dict[str, Callable[[Path], np.ndarray]] = {"rgb": read_rgb, "xyz": read_xyz, "gt": read_mask}


class Job(NamedTuple):
    """One sample to check; `hashed` are the folders whose files have a size that others have too."""

    root: Path
    entry: Entry
    hashed: frozenset[str]


@dataclass
class Facts:
    """What was seen of a sample; what could not be seen is None. Coordinates in the file's own unit."""

    entry: Entry
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None  # width, height
    valid_share: float | None = None  # of the pixels, with a measured point
    distance: float | None = None  # median, of the points from the origin
    low: tuple[float, ...] | None = None  # least x, y, z
    high: tuple[float, ...] | None = None
    state: State | None = None
    reason: str = ""  # why it looks raw
    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 by folder
    stated_unit: Unit | None = None  # None: the distance tells it


def check_sample(job: Job) -> Facts:
    """Read the sample's files and judge them; whatever goes wrong becomes a finding."""
    checker = _Checker(job)
    try:
        checker.run()
    except Exception as error:  # one odd file is not to end the check of thousands
        first = next(iter(job.entry.files))
        checker.add("unreadable", first, f"can't be checked ({error!r})")
    return checker.facts


class _Checker:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.facts = Facts(job.entry)

    def run(self) -> None:
        pixels = {part: array for part in self.job.entry.files if (array := self._read(part)) is not None}
        if "xyz" in pixels:
            self._judge_cloud(pixels["xyz"])
        shapes = {part: array.shape[:2] for part, array in pixels.items()}
        if len(set(shapes.values())) > 1:
            sizes = ", ".join(f"{part} {width}x{height}" for part, (height, width) in shapes.items())
            self.add("size_mismatch", next(iter(shapes)), f"the files differ in size: {sizes}")
        elif "rgb" in pixels and "xyz" in pixels:
            remark = silhouette_disagreement(pixels["rgb"], pixels["xyz"])
            if remark:
                self.add("silhouette", "rgb", remark, "compare the two")
        if "gt" in pixels:
            self._judge_mask(pixels["gt"])

    def add(self, code: str, part: str, problem: str, remedy: str = "") -> None:
        name = relative_name(self.job.entry.files[part], self.job.root)
        self.facts.findings.append(Finding(code, name, problem, remedy))

    def _read(self, part: str) -> np.ndarray | None:
        path = self.job.entry.files[part]
        try:
            pixels = READERS[part](path)
        except SampleFileError as error:
            public = any(self.job.entry.class_name in names for names in PUBLIC_CLASSES.values())
            remedy = EXPORT_ANEW if error.remedy == RESTORE and not public else error.remedy
            self.add("unreadable", part, error.problem, remedy)
            return None
        if part in self.job.hashed:
            self.facts.digests[part] = hashlib.sha256(path.read_bytes()).hexdigest()
        return pixels

    def _judge_cloud(self, cloud: np.ndarray) -> None:
        facts = self.facts
        facts.size = cloud.shape[1], cloud.shape[0]
        measured = measured_points(cloud)
        points = cloud[measured].astype(np.float64)
        facts.valid_share = len(points) / max(measured.size, 1)
        broken = np.count_nonzero(~np.isfinite(cloud).all(axis=2))
        if broken:
            self.add(
                "not_finite", "xyz", f"{broken} pixels with NaN or infinite points count as not measured"
            )
        if not len(points):
            self.add("empty_cloud", "xyz", "no point is measured", "leave the sample out")
            return
        facts.distance = float(np.median(np.linalg.norm(points, axis=1)))
        facts.low, facts.high = tuple(points.min(axis=0).tolist()), tuple(points.max(axis=0).tolist())
        facts.reason = looks_raw(cloud) or ""
        facts.state = "raw" if facts.reason else "preprocessed" if looks_preprocessed(cloud) else None
        if facts.valid_share < FEWEST:
            self.add("few_points", "xyz", f"only {facts.valid_share:.1%} of the pixels have a point")

    def _judge_mask(self, mask: np.ndarray) -> None:
        kind = self.job.entry.kind
        if kind == GOOD and mask.any():
            self.add("mask", "gt", f"marks a defect under {GOOD}", "move the sample, or empty its mask")
        elif kind != GOOD and not mask.any():
            self.add("mask", "gt", "marks no defect, under a kind of defect", "draw it, or move the sample")
