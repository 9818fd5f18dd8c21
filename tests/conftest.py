"""Shared fixtures: golden arrays, the real samples, a tiny data set on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.pretend_cuda import pretend_cuda
from utils.image_files import write_png, write_xyz

GOLDENS = Path(__file__).parent / "reference" / "goldens"

# Properties are tried with the same few examples in every run, or with many: HYPOTHESIS_PROFILE=thorough.
settings.register_profile(
    "few",
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", settings.get_profile("few"), max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

CUDA_VARIANTS = ("gpu", "pretend_gpu")


def pytest_sessionstart() -> None:
    """Ctrl-C is heard: a shell lets what it starts in the background ignore it, and children inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked cuda becomes two: on a GPU, and on the CPU with tensors that say they are on one."""
    if metafunc.definition.get_closest_marker("cuda"):
        variants = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in CUDA_VARIANTS]
        metafunc.parametrize("gpu_or_its_pretence", variants, indirect=True)


@pytest.fixture(autouse=True)
def gpu_or_its_pretence(request: pytest.FixtureRequest) -> Iterator[None]:
    """The variant of a test marked cuda; each machine runs one of the two."""
    variant = getattr(request, "param", None)
    if variant is None:
        yield
    elif torch.cuda.is_available() != (variant == "gpu"):
        pytest.skip("there is no GPU" if variant == "gpu" else "there is a GPU, nothing to pretend")
    elif variant == "gpu":
        yield
    else:
        with pretend_cuda():
            yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many of the passed tests saw a GPU, and how many a pretended one."""
    passed = terminalreporter.stats.get("passed", [])
    counts = {name: sum(name in report.keywords for report in passed) for name in CUDA_VARIANTS}
    if any(counts.values()):
        terminalreporter.write_line(
            f"passed on a GPU: {counts['gpu']}; on the CPU, pretending to be one: {counts['pretend_gpu']}"
        )


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the small arrays that the released code produced."""
    return GOLDENS


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real samples; they may not be committed, so without them the test is skipped."""
    folder = os.environ.get("M3DM_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("M3DM_REAL_DATA names no folder of real samples")
    return Path(folder)


@pytest.fixture(scope="session")
def large_goldens(real_data: Path) -> Path:
    """Folder of the golden arrays that are too large for the repository; it lies beside the real samples."""
    folder = real_data.resolve().parent / "goldens"
    if not folder.is_dir():
        pytest.skip("no large golden arrays beside the real samples")
    return folder


def write_sample(
    folder: Path, stem: str, rng: np.random.Generator, *, side: int = 40, defect: bool = False
) -> None:
    """A sample in `folder`/{rgb,xyz,gt}: a bumpy disc of points at half a metre, the rest not measured."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    disc = np.hypot(x, y) < 0.4
    z = 0.5 + 0.02 * np.sin(8 * x) + 1e-3 * rng.standard_normal((side, side))
    if defect:
        z[side // 2 : side // 2 + 6, side // 2 : side // 2 + 6] -= 0.03
    xyz = np.stack([0.1 * x + 1e-4, 0.1 * y + 1e-4, z], axis=2) * disc[..., None]
    write_xyz(folder / "xyz" / f"{stem}.tiff", xyz.astype(np.float32))
    rgb = (rng.integers(80, 120, (side, side, 3)) * disc[..., None]).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    if defect:
        rgb[side // 2 : side // 2 + 6, side // 2 : side // 2 + 6] = (255, 0, 0)
        mask[side // 2 : side // 2 + 6, side // 2 : side // 2 + 6] = 252
    write_png(folder / "rgb" / f"{stem}.png", rgb)
    if folder.parent.name == "test":
        write_png(folder / "gt" / f"{stem}.png", mask)


def write_class(
    root: Path, name: str, *, train: int = 3, validation: int = 0, good: int = 2, bad: int = 2, side: int = 40
) -> Path:
    """A small class in the layout of MVTec 3D-AD."""
    rng = np.random.default_rng(0)
    kinds = {"train/good": train, "test/good": good, "test/hole": bad, "validation/good": validation}
    for kind, count in kinds.items():
        for i in range(count):
            write_sample(root / name / kind, f"{i:03d}", rng, side=side, defect=kind == "test/hole")
    return root / name


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    """A data set of one class, bagel: 3 training samples, 2 good and 2 defective test samples."""
    write_class(tmp_path / "data", "bagel")
    return tmp_path / "data"
