"""main.py in this process, on images of 32 pixels with random weights: about a second a class."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import main

SMALL = "--img_size 32 --num_group 16 --group_size 8 --f_coreset 0.5 --device cpu --num_workers 0 --unchecked".split()
LOCKS = (".saving", ".index.lock", ".convert.lock", ".training", ".judging", ".downloading")
VIT_S = ["--rgb_backbone_name", "vit_small_patch8_224_dino"]


def run_main(data: Path, results: Path, method: str, *flags: str, random_weights: bool = True) -> int:
    """Exit status of a run; flags given here win over those that make it small."""
    weights = ["--random_weights"] if random_weights else []
    uff = ["--use_uff"] if "Fusion" in method else []
    folders = ["--dataset_path", str(data), "--results_dir", str(results)]
    return main.main(["--method_name", method, *folders, *SMALL, *VIT_S, *weights, *uff, *flags])


def read_record(results: Path) -> dict[str, Any]:
    """results.json."""
    return json.loads((results / "results.json").read_text(encoding="utf-8"))


def read_scores(results: Path, class_name: str) -> list[dict[str, str]]:
    """The rows of a class's scores."""
    with (results / "scores" / f"{class_name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_files(folder: Path) -> list[str]:
    """Names of the files under a folder, hidden ones too but for locks, which stay; '/'-separated and sorted."""
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_lock(path)]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _is_lock(path: Path) -> bool:
    return path.name in LOCKS or ".locks" in path.parts
