"""Peak memory of a class with three banks: generated features of full size, all that a fit holds and does.

python benchmarks/memory.py                          # 64 samples
python benchmarks/memory.py --samples 244            # a whole class; several minutes
python benchmarks/memory.py --samples 244 --scored 244

The features have clusters on few dimensions; 70 % of the xyz patches are empty, as in real parts. Each
--feature_dtype runs in a process of its own, with the networks in memory, through what m3dm_runner does after the
networks: collect, standardise, coresets, decision. Scoring a sample takes the same memory whichever it is, so only
--scored of them are scored, and their scores stand for those of the others, which the SVMs do get in full number;
the SVMs stop early, for the same reason.
"plain" is what the released code holds at the least: every patch in float32, the lists and their concatenation.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import torch
from sklearn.exceptions import ConvergenceWarning

from benchmarks.timing import table_row
from feature_extractors.decision import fit_one_class_decision
from feature_extractors.detector import Training, fit_banks
from feature_extractors.memory_bank.bank import MemoryBank
from feature_extractors.memory_bank.training_patches import PatchCollector
from feature_extractors.networks import load_networks
from feature_extractors.settings import FeatureDtype, Settings
from feature_extractors.weights import WeightsSource
from m3dm_runner import DTYPES
from models.uff.pairing import paired_rgb
from utils.resources import Stopwatch, peak_memory_mb
from utils.structures import Modality, Patches

DIMS: dict[Modality, int] = {"xyz": 1152, "rgb": 768, "fusion": 1920}
PATCHES: dict[Modality, int] = {"xyz": 3136, "rgb": 784, "fusion": 3136}
XYZ_SIDE, RGB_SIDE = 56, 28
FILLED = slice(13, 44)  # rows and columns of the xyz grid that hold points: 31 x 31 of 56 x 56, 31 %
HIDDEN_DIMS, CLUSTERS, NOISE = 24, 40, 0.05
SVM_PASSES = 5  # their number is nothing to the memory, and on such features they are hundreds
DTYPE_NAMES: tuple[FeatureDtype, ...] = ("float32", "float16")


def run(samples: int = 64, scored: int = 4) -> list[dict[str, Any]]:
    """One row for each dtype of the features."""
    rows = []
    for dtype in DTYPE_NAMES:
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            seconds, peak = pool.apply(measure, (samples, scored, dtype))
        rows.append(_row(samples, scored, dtype, seconds, peak))
    return rows


def measure(samples: int, scored: int, dtype: FeatureDtype) -> tuple[dict[str, float], float]:
    """Seconds of the stages, and the peak in GB of this process, which is to be fresh."""
    settings = Settings(feature_dtype=dtype, max_sample=samples, ocsvm_maxiter=SVM_PASSES)
    held = load_networks(settings, WeightsSource(random_weights=True), torch.device("cpu"))  # as in a run
    watch = Stopwatch()
    training = _generated(samples, DTYPES[dtype])
    warnings.simplefilter("ignore", ConvergenceWarning)
    with watch.stage("fit_banks"):
        banks = fit_banks(training, settings)
    with watch.stage("fit_decision"):
        _fit_decision(banks, training, settings, scored)
    del held
    return watch.seconds, (peak_memory_mb() or 0.0) / 1000


def _fit_decision(
    banks: dict[Modality, MemoryBank], training: Training, settings: Settings, scored: int
) -> None:
    """detector.fit_decision, with the scores of the first samples standing for the others'."""
    first = zip(*(training[name].first(scored) for name in banks), strict=True)
    scores = [
        [bank.score(patches) for bank, patches in zip(banks.values(), sample, strict=True)]
        for sample in first
    ]
    repeated = [scores[i % len(scores)] for i in range(settings.max_sample)]
    fit_one_class_decision(repeated, settings)


def _generated(samples: int, dtype: torch.dtype) -> Training:
    """Patches as the extractor gives them, sample by sample: distinct rows once, empty xyz patches as one."""
    rng = torch.Generator().manual_seed(0)
    row_of_patch = _rows_of_patches()
    bases = {name: torch.randn(HIDDEN_DIMS, dim, generator=rng) for name, dim in DIMS.items()}
    centers = 2 * torch.randn(CLUSTERS, HIDDEN_DIMS, generator=rng)
    collectors = {name: PatchCollector(samples, dtype) for name in DIMS}
    for _ in range(samples):
        for name, basis in bases.items():
            count = int(row_of_patch[name].max()) + 1
            hidden = centers[torch.randint(CLUSTERS, (count,), generator=rng)]
            hidden = hidden + torch.randn(count, HIDDEN_DIMS, generator=rng)
            rows = hidden @ basis + NOISE * torch.randn(count, DIMS[name], generator=rng)
            if name == "xyz":
                rows[-1] = 0
            collectors[name].add(Patches(rows, row_of_patch[name], math.isqrt(PATCHES[name])))
    return {name: collector.joined() for name, collector in collectors.items()}


def _rows_of_patches() -> dict[Modality, torch.Tensor]:
    """The row of each patch of a sample, (P,): xyz patches without a point share the last one."""
    filled = torch.zeros(XYZ_SIDE, XYZ_SIDE, dtype=torch.bool)
    filled[FILLED, FILLED] = True
    occupied = filled.flatten()
    xyz = torch.where(occupied, occupied.cumsum(0) - 1, int(occupied.sum()))
    pairs = xyz * PATCHES["rgb"] + paired_rgb("colocated", RGB_SIDE, XYZ_SIDE)
    fusion = torch.unique(pairs, return_inverse=True)[1]
    return {"xyz": xyz, "rgb": torch.arange(PATCHES["rgb"]), "fusion": fusion}


def _row(samples: int, scored: int, dtype: str, seconds: dict[str, float], peak: float) -> dict[str, Any]:
    held = sum(samples * PATCHES[name] * dim * 4 for name, dim in DIMS.items()) / 1e9
    plain = held + max(samples * PATCHES[name] * dim * 4 for name, dim in DIMS.items()) / 1e9
    return table_row(
        f"peak memory of a fit, --feature_dtype {dtype}",
        f"{samples} samples ({scored} scored), 3 banks",
        plain=f"{plain:.1f} GB",
        ours=f"{peak:.1f} GB",
        ratio=round(plain / peak, 1),
        exactness=", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()),
        peak_memory=f"{peak:.2f} GB",
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64, help="training samples (default %(default)s)")
    parser.add_argument("--scored", type=int, default=4, help="samples scored (default %(default)s)")
    args = parser.parse_args()
    for row in run(args.samples, args.scored):
        print(row, flush=True)


if __name__ == "__main__":
    main()
