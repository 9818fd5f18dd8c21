"""Which files make a part: given one by one, by name patterns, or in a tree laid out as MVTec 3D-AD's."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

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
    Folders may come and go meanwhile.
    """
    parts, problems = list[Part](), list[str]()
    for folder in _folders(root, problems):
        if folder.name in KINDS and _is_folder(folder.parent / "xyz"):
            continue
        name = PurePosixPath(folder.relative_to(root).as_posix())
        if _is_folder(folder / "xyz"):
            files = {kind: _files_by_stem(folder / kind, kind, problems) for kind in ("xyz", "rgb")}
            needs = ["xyz", "rgb"] if files["rgb"] else ["xyz"]
            problems += [
                f"{path}: lies beside xyz/, whose parts alone are taken; put it in there, or in another folder"
                for path in _visible_files(folder, problems)
                if _kind_of(path) is not None
            ]
        else:
            files, needs = _side_by_side(folder, problems), ["xyz"]
        found = _paired(files, name, str(folder), needs)
        parts += found.parts
        problems += found.problems
    return Found(parts, list(dict.fromkeys(problems)))


def _folders(root: Path, problems: list[str]) -> list[Path]:
    """`root` and all folders below it, sorted; what is in those that are links is not looked through further."""

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            problems.append(_unlisted(Path(error.filename), error))

    below = (Path(place, name) for place, names, _ in os.walk(root, onerror=tell) for name in names)
    return sorted({root, *below})


def _side_by_side(folder: Path, problems: list[str]) -> dict[str, dict[str, Path]]:
    """Clouds and images in one folder by stem; stems of two clouds or two images go to `problems`."""
    found: dict[str, dict[str, list[Path]]] = {"xyz": defaultdict(list), "rgb": defaultdict(list)}
    for path in _visible_files(folder, problems):
        if (kind := _kind_of(path)) is not None:
            found[kind][path.stem].append(path)
    doubled = set().union(*(_doubled(by_stem, folder, problems) for by_stem in found.values()))
    return {
        kind: {stem: paths[0] for stem, paths in by_stem.items() if stem not in doubled}
        for kind, by_stem in found.items()
    }


def _kind_of(path: Path) -> str | None:
    """xyz or rgb, of a file in a folder that holds both; None for other files."""
    suffix = path.suffix.lower()
    if suffix in CLOUD_FORMATS and suffix not in IMAGE_ONLY:
        return "xyz"
    return "rgb" if suffix in IMAGE_SUFFIXES else None


def _visible_files(folder: Path, problems: list[str]) -> list[Path]:
    """The files of a folder, sorted; those that can't be read go to `problems`. None where there is no folder."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(_unlisted(folder, error))
        return []
    return [path for path in paths if _is_file(path, problems)]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # of no access: it is named where it is listed
        return False


def _is_file(path: Path, problems: list[str]) -> bool:
    """Whether it is a file; pipes, broken links and the like go to `problems`, but not folders."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() or not isinstance(error, FileNotFoundError):  # else it is gone again
            problems.append(
                f"{path}: can't be read ({error.strerror}); check where it leads, and its permissions"
            )
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        problems.append(f"{path}: is no regular file; put the file itself there")
    return stat.S_ISREG(mode)


def _unlisted(folder: Path, error: OSError) -> str:
    return f"{folder}: can't be listed ({error.strerror}); check its permissions"


def _matches(root: Path, kind: str, pattern: str) -> dict[str, Path]:
    """Stem -> file."""
    flag = "mask" if kind == "gt" else kind
    if pattern.count(STEM) != 1:
        raise ValueError(f"--{flag}_pattern {pattern}: must hold {STEM} once, as in '{STEM}_cloud.ply'")
    if PurePath(pattern).anchor:
        raise ValueError(f"--{flag}_pattern {pattern}: must name files by their place in --input {root}")
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
    for path in _visible_files(folder, problems):
        if path.suffix.lower() in SUFFIXES[kind]:
            by_stem[path.stem].append(path)
        else:
            problems.append(f"{path}: is of no type that is read here; convert or remove it")
    doubled = _doubled(by_stem, folder, problems)
    return {stem: paths[0] for stem, paths in by_stem.items() if stem not in doubled}


def _doubled(by_stem: dict[str, list[Path]], folder: Path, problems: list[str]) -> set[str]:
    """The stems of several files, which go to `problems`: nothing tells which of them is meant."""
    doubled = {stem: paths for stem, paths in by_stem.items() if len(paths) > 1}
    for paths in doubled.values():
        names = ", ".join(path.name for path in paths)
        problems.append(f"{folder}: {names} have one name; keep one of them")
    return set(doubled)


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
