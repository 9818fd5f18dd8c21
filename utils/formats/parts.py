"""Which files make a part: given one by one, by name patterns, or in a tree laid out as MVTec 3D-AD's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils.formats.clouds import CLOUD_FORMATS
from utils.formats.images import IMAGE_SUFFIXES

STEM = "{stem}"
KINDS = ("xyz", "rgb", "gt")  # names of a sample's folders
SUFFIXES: dict[str, Container[str]] = {"xyz": CLOUD_FORMATS, "rgb": IMAGE_SUFFIXES, "gt": IMAGE_SUFFIXES}
SPLITS = ("train", "validation", "test")
IMAGE_ONLY = {".png"}  # of the suffixes of both, in folders that hold images and clouds


@dataclass(frozen=True)
class Part:
    """The files of one part, and `folder`, the place of its kind (bracket/train/good) in the data set."""

    stem: str
    folder: PurePosixPath
    xyz: Path
    rgb: Path | None = None  # None: the colours of the cloud
    mask: Path | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return (self.folder / self.stem).as_posix()


@dataclass(frozen=True)
class Found:
    """Parts in the order of their names, and a line on each file that belongs to none."""

    parts: list[Part]
    problems: list[str]


def parts_by_pattern(root: Path, patterns: dict[str, str], folder: PurePosixPath) -> Found:
    """Parts of the files in `root` that match `patterns` (kind -> pattern with {stem}), which may name subfolders.

    A part needs its xyz and, where there is a pattern for it, its rgb; a mask is taken where there is one.
    Raises ValueError on a pattern without exactly one {stem}.
    """
    files = {kind: _matches(root, kind, pattern) for kind, pattern in patterns.items()}
    return _paired(files, folder, str(root), needs=[kind for kind in ("xyz", "rgb") if kind in patterns])


def parts_by_tree(root: Path) -> Found:
    """Parts of <class>/<split>/<kind>/{rgb,xyz,gt}/ under `root`, whose files may be of any type that we read.

    A kind's folder without rgb/ has the colours in its clouds.
    """
    parts, problems = list[Part](), list[str]()
    for folder in sorted({path.parent for split in SPLITS for path in root.glob(f"*/{split}/*/xyz")}):
        files = {kind: _files_by_stem(folder / kind, kind, problems) for kind in KINDS}
        needs = ["xyz", "rgb"] if (folder / "rgb").is_dir() else ["xyz"]
        found = _paired(files, PurePosixPath(folder.relative_to(root).as_posix()), str(folder), needs)
        parts += found.parts
        problems += found.problems
    return Found(parts, problems)


def parts_anywhere(root: Path) -> Found:
    """Parts in the folders under `root`, at any depth: rgb/ and xyz/ beside each other, or files of one stem.

    Within one folder an image and a cloud of one stem make a part; a cloud without an image has colors of its own.
    """
    parts, problems = list[Part](), list[str]()
    for folder in sorted({root, *(path for path in root.rglob("*") if path.is_dir())}):
        if folder.name in KINDS and (folder.parent / "xyz").is_dir():
            continue
        name = PurePosixPath(folder.relative_to(root).as_posix())
        if (folder / "xyz").is_dir():
            files = {kind: _files_by_stem(folder / kind, kind, problems) for kind in ("xyz", "rgb")}
            needs = ["xyz", "rgb"] if files["rgb"] else ["xyz"]
        else:
            files, needs = _side_by_side(folder), ["xyz"]
        found = _paired(files, name, str(folder), needs)
        parts += found.parts
        problems += found.problems
    return Found(parts, problems)


def _side_by_side(folder: Path) -> dict[str, dict[str, Path]]:
    """Clouds and images in one folder by stem; a png is an image unless a jpg, say, has its stem."""
    files: dict[str, dict[str, Path]] = {"xyz": {}, "rgb": {}}
    visible = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    for path in sorted(visible):
        suffix = path.suffix.lower()
        if suffix in CLOUD_FORMATS and suffix not in IMAGE_ONLY:
            files["xyz"][path.stem] = path
        elif suffix in IMAGE_SUFFIXES:
            files["rgb"][path.stem] = path
    return files


def _matches(root: Path, kind: str, pattern: str) -> dict[str, Path]:
    """Stem -> file."""
    if pattern.count(STEM) != 1:
        flag = "mask" if kind == "gt" else kind
        raise ValueError(f"--{flag}_pattern {pattern}: must hold {STEM} once, as in '{STEM}_cloud.ply'")
    before, after = pattern.split(STEM)
    expression = re.compile(re.escape(before) + r"([^/.][^/]*)" + re.escape(after))
    found = {}
    for path in sorted(root.glob(f"{_escaped(before)}*{_escaped(after)}")):
        match = expression.fullmatch(path.relative_to(root).as_posix())
        if match and path.is_file():
            found[match[1]] = path
    return found


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _files_by_stem(folder: Path, kind: str, problems: list[str]) -> dict[str, Path]:
    """Stem -> file; files that can't be taken go to `problems`."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES[kind]:
            by_stem[path.stem].append(path)
        else:
            problems.append(f"{path}: is of no type that is read here; convert or remove it")
    for paths in by_stem.values():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            problems.append(f"{folder}: {names} have one name; keep one of them")
    return {stem: paths[0] for stem, paths in by_stem.items() if len(paths) == 1}


def _paired(files: dict[str, dict[str, Path]], folder: PurePosixPath, where: str, needs: list[str]) -> Found:
    """Parts that have all of `needs`; of each other stem, what it has and lacks."""
    parts, problems = [], []
    for stem in sorted(set().union(*files.values())):
        own = {kind: found[stem] for kind, found in files.items() if stem in found}
        lacks = [kind for kind in needs if kind not in own]
        if lacks:
            has = ", ".join(path.name for path in own.values())
            problems.append(f"{where}: {stem} has {has} but no {' and no '.join(lacks)} file")
        else:
            parts.append(Part(stem, folder, own["xyz"], own.get("rgb"), own.get("gt")))
    return Found(parts, problems)
