"""What lies in a data set's folders: samples with the files they have, and what is missing or out of place.

Layout: `<root>/<class>/{train,validation,test}/<kind>/{rgb/*.png, xyz/*.tiff, gt/*.png}`, kind `good` or a defect.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from utils.check.findings import Finding
from utils.class_names import EYECANDIES_CLASSES, MVTEC3D_CLASSES
from utils.file_kinds import CONVERT
from utils.image_files import IMAGE_SUFFIXES

PUBLIC_CLASSES = {"mvtec3d": MVTEC3D_CLASSES, "eyecandies": EYECANDIES_CLASSES}
SPLITS = ("train", "validation", "test")
NEEDED = {  # split: code where it is empty, kind, remedy
    "train": ("layout", "good", ""),
    "test": ("no_test", "<kind>", "main.py --save_detector fits a detector without"),
}
GOOD = "good"
SUFFIXES = {"rgb": ".png", "xyz": ".tiff", "gt": ".png"}
FOREIGN_SUFFIXES = IMAGE_SUFFIXES | set(
    ".ply .pcd .exr .npy .npz .xyz .obj .stl .webp .gif .pgm .ppm".split()
)


class Entry(NamedTuple):
    """One sample: the files it has and their sizes in bytes, by folder (rgb, xyz, gt)."""

    class_name: str
    split: str
    kind: str
    stem: str
    files: dict[str, Path]
    sizes: dict[str, int]


class Tree(NamedTuple):
    """All samples of the classes, and what is wrong with folders and names."""

    classes: list[str]
    samples: list[Entry]
    findings: list[Finding]


def list_tree(root: Path, wanted: list[str] | None) -> Tree:
    """The samples of the `wanted` classes under `root`, None: of all. Whatever can't be listed is a finding."""
    lister = _Lister(root)
    classes = sorted(wanted if wanted is not None else lister.classes())
    samples = [entry for name in classes for entry in lister.class_samples(root / name)]
    return Tree(classes, samples, lister.findings)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root` that hold a split, sorted. Raises OSError."""
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    return [name for name in names if any(_is_folder(root / name / split) for split in SPLITS)]


class _Lister:
    """Lists folders under one root and collects what it finds odd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.findings: list[Finding] = []

    def classes(self) -> list[str]:
        classes = class_folders(self.root)
        for path in self._listed(self.root) or ():
            if path.name not in classes and _is_folder(path) and self._listed(path) is not None:
                self._add("not_read", path, f"holds no {', '.join(SPLITS)}: is no class")
        if not classes:
            self._add("layout", self.root, "holds no class (<class>/train/good/{rgb,xyz})", CONVERT)
        return classes

    def class_samples(self, folder: Path) -> list[Entry]:
        if _is_folder(folder / "train" / "data"):
            self._add(
                "layout",
                folder,
                "is Eyecandies as downloaded",
                "python utils/preprocess_eyecandies.py --dataset_path ROOT --target_dir DIR",
            )
            return []
        by_split = {split: self._split_samples(folder / split) for split in SPLITS}
        for split, (code, kind, remedy) in NEEDED.items():
            if not by_split[split]:
                expected = f"{split}/{kind}/rgb/*.png and xyz/*.tiff"
                self._add(code, folder / split, f"no sample (expected {expected})", remedy)
        return [entry for entries in by_split.values() for entry in entries]

    def _split_samples(self, folder: Path) -> list[Entry]:
        kinds = [path for path in self._listed(folder) or () if _is_folder(path)]
        read = [path for path in kinds if path.name == GOOD or folder.name == "test"]
        for path in kinds:
            if path not in read:
                self._add("not_read", path, f"{folder.name} is read from {GOOD}/ only")
        return [entry for path in read for entry in self._kind_samples(path)]

    def _kind_samples(self, folder: Path) -> list[Entry]:
        listed = {part: self._listed(folder / part) or [] for part in SUFFIXES}
        stems = {part: _by_stem(paths, SUFFIXES[part]) for part, paths in listed.items()}
        needed = ["rgb", "xyz"]
        if folder.name != GOOD and stems["gt"]:
            needed.append("gt")
        elif folder.name != GOOD:
            self._add("no_mask", folder, "has no masks in gt/: its samples are scored, without pixel metrics")
        every = sorted(set().union(*(stems[part] for part in needed)))
        foreign = [path for part in SUFFIXES for path in self._foreign(listed[part], SUFFIXES[part])]
        self._check_pairs(folder, every, {part: stems[part] for part in needed}, foreign)
        return [self._entry(folder, stem, stems) for stem in every]

    def _check_pairs(
        self, folder: Path, every: list[str], stems: dict[str, dict[str, Path]], foreign: list[Path]
    ) -> None:
        """A finding for each file that a sample lacks, unless it is there under a foreign name."""
        known = {(path.parent.name, path.stem) for path in foreign}
        for part in stems:
            for stem in every:
                if stem in stems[part] or (part, stem) in known:
                    continue
                others = " and ".join(f"{other}/" for other in stems if stem in stems[other])
                path = folder / part / (stem + SUFFIXES[part])
                self._add("unpaired", path, f"is missing, {others} has it")

    def _entry(self, folder: Path, stem: str, stems: dict[str, dict[str, Path]]) -> Entry:
        files = {part: found[stem] for part, found in stems.items() if stem in found}
        sizes = {part: _size(path) for part, path in files.items()}
        split = folder.parent
        return Entry(split.parent.name, split.name, folder.name, stem, files, sizes)

    def _foreign(self, paths: list[Path], wanted: str) -> list[Path]:
        """Those of other suffixes; images and clouds among them are errors, other files are remarked on."""
        others = [path for path in paths if path.suffix != wanted]
        for path in others:
            problem = f"is not read: names here end in {wanted}"
            if path.suffix.lower() == wanted:
                self._add("foreign_file", path, problem, "rename it")
            elif path.suffix.lower() in FOREIGN_SUFFIXES:
                self._add("foreign_file", path, problem, CONVERT)
            else:
                self._add("not_read", path, problem)
        return others

    def _listed(self, folder: Path) -> list[Path] | None:
        """Visible entries of a folder, sorted; [] where there is none, None and a finding where it can't be read."""
        try:
            return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            remedy = "check that it is a readable folder"
            self._add("layout", folder, f"can't be listed ({error.strerror})", remedy)
            return None

    def _add(self, code: str, path: Path, problem: str, remedy: str = "") -> None:
        self.findings.append(Finding(code, relative_name(path, self.root), problem, remedy))


def relative_name(path: Path, root: Path) -> str:
    """`path` relative to the data set, '/'-separated; the root itself as it was given."""
    return str(root) if path == root else path.relative_to(root).as_posix()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission, or a loop of links
        return False


def _by_stem(paths: list[Path], suffix: str) -> dict[str, Path]:
    return {path.stem: path for path in paths if path.suffix == suffix}


def _size(path: Path) -> int:
    """Bytes of a file, -1 where that can't be told."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
