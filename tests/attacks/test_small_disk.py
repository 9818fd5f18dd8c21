"""Every writer on a disk that is really full: the libraries below it write in their own ways."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from m3dm_runner import M3DM
from models.uff.feature_store import FeatureStoreWriter
from tests.synthetic_features import META, toy_patches
from utils.files import TEMPORARY_NAME, write_text
from utils.image_files import write_png, write_xyz
from utils.pictures import write_colored_cloud, write_map
from utils.preprocess.record import write_part

pytestmark = pytest.mark.slow
SIDE = 200  # pixels
DISK = "size=64k"
FILLER = 60 * 1024  # bytes
OLD = b"old"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(folder)]
    if shutil.which("mount") is None or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def _colors() -> np.ndarray:
    return (255 * _noise(SIDE, SIDE, 3)).astype(np.uint8)


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "text.md": lambda path, inputs: write_text(path, "x" * 100_000),
    "picture.png": lambda path, inputs: write_png(path, _colors()),
    "cloud.tiff": lambda path, inputs: write_xyz(path, _noise(SIDE, SIDE, 3)),
    "map.tiff": lambda path, inputs: write_map(path, _noise(SIDE, SIDE)),
    "cloud.ply": lambda path, inputs: write_colored_cloud(path, _noise(SIDE, SIDE, 3), _colors()),
    "detector.m3dm": lambda path, inputs: M3DM.load(inputs / "detectors/bagel.m3dm", device="cpu").save(path),
    "part.tiff": lambda path, inputs: write_part(path, b"x" * 100_000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file_and_the_old_one_stays(name, disk, inputs):
    path = disk / name
    path.write_bytes(OLD)
    (disk / "filler").write_bytes(bytes(FILLER))
    with pytest.raises(OSError, match="can't be written") as error:
        WRITERS[name](path, inputs)
    assert str(error.value).startswith(f"{path}: ")
    assert path.read_bytes() == OLD
    assert not [left for left in disk.iterdir() if TEMPORARY_NAME.fullmatch(left.name)]


def test_features_that_do_not_fit_leave_the_manifest_without_their_class(disk):
    with (
        FeatureStoreWriter.open(disk, META) as store,
        pytest.raises(OSError, match=r"bagel_\d+\.npz: can't be written"),
    ):
        [store.save("bagel", i, toy_patches(i)) for i in range(100)]
    assert '"classes": {}' in (disk / "index.json").read_text(encoding="utf-8")
