"""predict.py --watch over many parts, as a real process: memory flat, no file handle and no process lost, report right.

M3DM_SOAK_PARTS=2000 python -m pytest tests/attacks/test_soak.py -m slow -s
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import main
from utils.demo_data import DemoSettings, write_demo_data
from utils.preprocess.sample import Parameters
from utils.preprocessing import preprocess_dataset
from utils.verdict_folder import LOCK_NAME

PARTS = int(os.environ.get("M3DM_SOAK_PARTS", "200"))
CHUNK = max(1, min(50, PARTS // 20))  # parts that arrive at once
LOOKS = 5  # at the open files, of which the least count
LONGEST_WAIT_S = 600  # for a chunk
WARM_UP = 0.5  # share of the parts before memory is judged
MOST_GROWTH_MB = 15.0  # after it: names, states of files and the allocator's fragments
SAME_SCORE = {"preprocessed": 0.0, "raw": 0.05}  # raw: RANSAC's draws follow a part's name
ROOT = Path(__file__).parents[2]


class Usage(NamedTuple):
    """Of the process, after so many parts."""

    parts: int
    memory_mb: float
    handles: int
    children: int


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data, raw and preprocessed, and a detector of its bagel by FPFH, which needs no weights."""
    folder = tmp_path_factory.mktemp("soak")
    write_demo_data(folder / "raw", DemoSettings(train=4, validation=2, test_per_kind=1, image_size=128))
    preprocess_dataset(folder / "raw", folder / "preprocessed", Parameters(), num_workers=1, progress=False)
    flags = ["--method_name", "Point_MAE", "--xyz_backbone_name", "FPFH", "--class_name", "bagel"]
    flags += ["--dataset_path", str(folder / "preprocessed"), "--device", "cpu", "--num_workers", "0"]
    flags += ["--results_dir", str(folder / "results"), "--save_detector", str(folder / "detectors")]
    assert main.main(flags) == 0
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("form", SAME_SCORE)
def test_watching_for_long_loses_no_memory_no_handle_and_no_part(
    form: str, work: Path, tmp_path: Path
) -> None:
    sources = sorted((work / form / "bagel/test").glob("*/xyz/*.tiff"))
    incoming, output = tmp_path / "incoming", tmp_path / "output"
    incoming.mkdir()
    process = _watching(work / "detectors/bagel.m3dm", incoming, output, form)
    try:
        usage = [
            _usage_after(process, _arrive(sources, incoming, start), output)
            for start in range(0, PARTS, CHUNK)
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST_WAIT_S) == 0
    finally:
        process.kill()
    _check_usage(form, usage)
    _check_report(output, sources, SAME_SCORE[form])


def _watching(detector: Path, incoming: Path, output: Path, form: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "predict.py", "--detector", str(detector), "--device", "cpu"]
    command += ["--watch", str(incoming), "--output", str(output), "--poll_seconds", "0.3"]
    command += ["--preprocessed"] if form == "preprocessed" else []
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def _arrive(sources: list[Path], incoming: Path, start: int) -> int:
    """A chunk of parts, links to the sources in turn, comes into the folder by one move; returns how many there are."""
    chunk, end = incoming.with_name("chunk"), min(start + CHUNK, PARTS)
    chunk.mkdir()
    for i in range(start, end):
        xyz = sources[i % len(sources)]
        (chunk / f"{i:06d}.tiff").symlink_to(xyz)  # another hard link would change those that are there
        (chunk / f"{i:06d}.png").symlink_to(xyz.parents[1] / "rgb" / f"{xyz.stem}.png")
    chunk.rename(incoming / f"{start:06d}")
    return end


def _usage_after(process: subprocess.Popen[bytes], count: int, output: Path) -> Usage:
    """Once the report has `count` parts."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    while len(_rows(output)) < count:
        assert process.poll() is None, "predict.py has ended"
        assert time.monotonic() < deadline, f"{len(_rows(output))} of {count} parts are judged"
        time.sleep(0.1)
    proc = Path(f"/proc/{process.pid}")
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    children = [
        child for task in (proc / "task").iterdir() for child in (task / "children").read_text().split()
    ]
    usage = Usage(count, resident / 1e6, min(_open_handles(proc) for _ in range(LOOKS)), len(children))
    print(usage, flush=True)
    return usage


def _open_handles(proc: Path) -> int:
    """Files that are open now; a folder that is just being looked through counts too."""
    time.sleep(0.05)
    return len(list((proc / "fd").iterdir()))


def _rows(output: Path) -> list[dict[str, str]]:
    try:
        with (output / "report.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def _check_usage(form: str, usage: list[Usage]) -> None:
    judged = np.array([of for of in usage if of.parts > WARM_UP * PARTS], dtype=float)
    slope = 1000 * np.polyfit(judged[:, 0], judged[:, 1], 1)[0]
    print(
        f"\n{form}: {PARTS} parts, memory {usage[0].memory_mb:.0f} -> {usage[-1].memory_mb:.0f} MB, "
        f"{slope:.2f} MB a 1,000 parts in the second half; handles {sorted({of.handles for of in usage})}, "
        f"children {sorted({of.children for of in usage})}"
    )
    assert slope * (1 - WARM_UP) * PARTS / 1000 < MOST_GROWTH_MB
    assert len({of.handles for of in usage}) == 1
    assert len({of.children for of in usage}) == 1


def _check_report(output: Path, sources: list[Path], tolerance: float) -> None:
    """Every part is in it once, equal parts have equal scores, and nothing half is left."""
    rows = _rows(output)
    assert [row["problem"] for row in rows if row["problem"]] == []
    assert len({row["part"] for row in rows}) == len(rows) == PARTS
    scores: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        scores[int(Path(row["part"]).name) % len(sources)].append(float(row["score"]))
    for equal in scores.values():
        assert max(equal) - min(equal) <= tolerance * max(equal)
    assert len({of_one[0] for of_one in scores.values()}) == len(sources)
    for kind in ("maps", "overlays", "clouds"):
        assert sum(path.is_file() for path in (output / kind).rglob("*")) == PARTS
    assert [path.name for path in output.rglob(".*")] == [LOCK_NAME]
    assert (output / "report.html").stat().st_size > 0
