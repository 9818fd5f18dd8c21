"""Every reader of files that others may have written or changed: valid files to start from, and what may come out."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from pypcd4 import Encoding
from safetensors import safe_open
from safetensors.torch import save

from feature_extractors.calibration import Calibration, ThresholdRule
from feature_extractors.decision import LinearScore, OneClassDecision
from feature_extractors.detector import Detector
from feature_extractors.detector_file import (
    METADATA_KEY,
    DetectorFileError,
    Header,
    checksum,
    read_detector,
    write_detector,
)
from feature_extractors.memory_bank.bank import MemoryBank, ScoreRule
from feature_extractors.memory_bank.training_patches import Standardization
from feature_extractors.settings import Settings
from models.checkpoints import CheckpointError, read_numpy_headers, read_torch_file
from models.uff.block import FusionBlock, load_fusion_block
from models.uff.engine import new_state, resume, save_checkpoint
from models.uff.feature_store import MANIFEST_NAME, read_manifest, read_sample
from models.uff.released_features import RGB_SIDE, XYZ_DIM, XYZ_SIDE, read_released_sample, released_meta
from tests.attacks.mutations import Mutation, as_json, damaged_member, damaged_png, tampered, tampered_json
from tests.sensor_files import made_up_cloud, made_up_image, write_pcd, write_ply
from tests.synthetic_features import META, write_toy_store
from utils.download import RECORD as DOWNLOADS
from utils.download import read_record as read_downloads
from utils.fetching import PartFile
from utils.formats.cameras import DivisionCamera, PinholeCamera, read_camera
from utils.formats.clouds import read_cloud
from utils.formats.images import load_image, load_mask
from utils.formats.organised import MAX_PIXELS, CloudOptions
from utils.image_files import (
    SampleFileError,
    encode_png,
    image_shape,
    read_mask,
    read_rgb,
    read_xyz,
)
from utils.part_reader import recorded_parameters
from utils.preprocess.eyecandies import read_depth, read_pose
from utils.preprocess.record import RECORD_NAME, RecordError, read_record
from utils.preprocess.sample import Parameters
from utils.report.figures import Case, ClassFigures, Kind, read_figures, write_figures
from utils.report.run_report import _scores
from utils.structures import Modality, Score, Thresholds

EXIF_ORIENTATION = 0x0112
CLOUD = made_up_cloud(6, 4)
IMAGE = made_up_image(6, 4)
DEPTH = np.arange(5000, 5024, dtype=np.uint16).reshape(4, 6)
OPTIONS = CloudOptions(
    unit="m", image_size=(6, 4), camera=PinholeCamera(300, 301, 2.6, 1.7), depth_scale=1e-3
)


@dataclass(frozen=True)
class Reader:
    """How a file is read, what it raises for files that it refuses, and whether a value that it returns is one.

    file: where it lies below a folder; seeds: contents that are read; inside: damage that leaves containers and
    checksums intact, for half of the mutants.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], Any]
    error: type[Exception] | tuple[()]
    is_valid: Callable[[Any], bool]
    inside: Mutation | None = None


def _written(*writers: Callable[[Path], object], name: str = "seed") -> list[bytes]:
    """What writers write to a path."""
    contents = []
    for write in writers:
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            contents.append(path.read_bytes())
    return contents


def _images(*saved: tuple[str, str]) -> list[bytes]:
    """IMAGE in Pillow's modes and formats."""
    contents = []
    for mode, format_name in saved:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        options = {"exif": exif} if format_name in ("PNG", "JPEG", "TIFF", "WEBP") else {}
        Image.fromarray(IMAGE).convert(mode).save(buffer, format_name, **options)
        contents.append(buffer.getvalue())
    return contents


def _rgb_png() -> list[bytes]:
    return [encode_png(IMAGE)]


def _depth_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(DEPTH).save(buffer, "PNG")
    return buffer.getvalue()


def _tiffs() -> list[bytes]:
    variants: list[dict[str, Any]] = [
        {"photometric": "rgb", "metadata": None},
        {"photometric": "rgb", "byteorder": ">"},
        {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 1},
        {"photometric": "rgb", "bigtiff": True},
        {"photometric": "rgb", "tile": (16, 16)},
    ]
    return _written(
        *(partial(tifffile.imwrite, data=CLOUD, **options) for options in variants), name="a.tiff"
    )


def _is_pixels(dims: int, value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == dims and (dims == 2 or value.shape[2] == 3)


def _is_cloud(value: np.ndarray) -> bool:
    return value.dtype == np.float32 and value.ndim == 3 and value.shape[2] == 3


def _is_finite_cloud(value: np.ndarray) -> bool:
    return _is_cloud(value) and bool(np.isfinite(value).all()) and value[..., 0].size <= MAX_PIXELS


def _cloud_reader(name: str, seeds: Callable[[], list[bytes]], inside: Mutation | None = None) -> Reader:
    read = partial(read_cloud, options=OPTIONS)
    return Reader(name, seeds, read, SampleFileError, _is_finite_cloud, inside)


def _ply_seeds() -> list[bytes]:
    return _written(
        partial(write_ply, points=CLOUD, text=True, extras=True),
        partial(write_ply, points=CLOUD, colors=IMAGE, comments=("width 6", "height 4")),
        partial(write_ply, points=CLOUD, byte_order=">", dtype="f8", extras=True),
    )


def _pcd_seeds() -> list[bytes]:
    return _written(
        *(partial(write_pcd, cloud=CLOUD, encoding=e, colors=IMAGE) for e in Encoding),
        partial(write_pcd, cloud=CLOUD, organised=False),
    )


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _npz(compressed: bool, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _state() -> Any:
    block = FusionBlock(4, 2, hidden_ratio=1, head_dim=3)
    return new_state(block, weight_decay=0.01, no_decay_bias_norm=True, amp_dtype=None)


def _trained(path: Path, *, zipped: bool) -> None:
    torch.manual_seed(0)
    state = _state()
    sum(p.square().sum() for p in state.model.parameters()).backward()
    state.optimizer.step()
    save_checkpoint(path, state, 3, argparse.Namespace(lr=0.1))
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=zipped)


def _checkpoints(zipped: bool) -> list[bytes]:
    return _written(partial(_trained, zipped=zipped))


def _read_uff(path: Path) -> bool:
    """Both uses of a UFF checkpoint; whether all is finite."""
    state = _state()
    resume(path, state)
    block = load_fusion_block(path, xyz_dim=4, rgb_dim=2)
    moments = [value for moment in state.optimizer.state.values() for value in moment.values()]
    tensors = [*block.parameters(), *state.model.parameters(), *moments]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _released() -> list[bytes]:
    """A file whose rows are views of one, so that it is small."""
    buffer = io.BytesIO()
    torch.save(torch.ones(XYZ_DIM + 2).expand(XYZ_SIDE**2, XYZ_DIM + 2), buffer)
    return [buffer.getvalue()]


def _read_released(path: Path) -> bool:
    meta = released_meta(path)
    sample = read_released_sample(path, meta)
    return sample.rgb.shape == (RGB_SIDE**2, meta.rgb_dim) and sample.xyz.shape == (
        len(sample.xyz_row),
        XYZ_DIM,
    )


STORE = {"rgb_dim": 2, "xyz_dim": 3}
STORE_META = replace(META, **STORE)


def _stored(name: str) -> list[bytes]:
    with TemporaryDirectory() as folder:
        return [(write_toy_store(Path(folder), 1, **STORE) / name).read_bytes()]


def _is_stored_sample(sample: Any) -> bool:
    row = sample.xyz_row
    fits = sample.rgb.shape == (16, 2) and sample.xyz.shape == (len(row), 3) and row.dtype == torch.int64
    return fits and len(row) <= 64 and bool(((row >= 0) & (row < 64)).all())


SETTINGS = Settings(
    "DINO+Point_MAE", rgb_backbone_name="vit_small_patch8_224_dino", xyz_backbone_name="FPFH", img_size=32
)


def _detector_files() -> list[bytes]:
    rows: dict[Modality, torch.Tensor] = {"xyz": torch.ones(3, 33).double(), "rgb": torch.ones(3, 384)}
    rule = ScoreRule.of(SETTINGS)
    banks = {
        name: MemoryBank(rows[name], Standardization(0.1, 0.3), rule) for name in SETTINGS.method.sources
    }
    svm = LinearScore(np.array([0.5, 0.25]), 0.1)
    factors = np.full(2, 0.1, np.float32)
    detector = Detector(banks, OneClassDecision(factors, factors, svm, svm))
    scores = [Score(value, np.full((2, 2), value, np.float32)) for value in (1.0, 2.0)]
    header = Header(
        SETTINGS.as_dict(),
        {"rgb": "random, seed 0", "xyz": "none needed"},
        {"torch": "2.9"},
        {"train": 3},
        Calibration.of(scores, ThresholdRule(), "validation/good").as_dict(),
        {**vars(Parameters()), "unit": "m"},
    )
    return _written(
        *(partial(write_detector, detector=detector, header=header, dtype=d) for d in ("float32", "float16"))
    )


def _signed_again(content: bytes, _: Any, rng: np.random.Generator) -> bytes:
    """A detector whose author changed its header, or dropped or changed a tensor, and signed it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seed"
        path.write_bytes(content)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if rng.random() < 0.2:
        _change_tensor(tensors, rng)
    else:
        header = tampered(header, rng)
    if isinstance(header, dict):
        header["sha256"] = checksum(header, tensors)
    return save(tensors, {METADATA_KEY: as_json(header).decode()})


def _change_tensor(tensors: dict[str, torch.Tensor], rng: np.random.Generator) -> None:
    name = list(tensors)[int(rng.integers(len(tensors)))]
    tensor = tensors.pop(name)
    odd = (torch.nan, torch.inf, -1, 0)
    choices = [
        lambda: tensor.flatten(),
        lambda: tensor[:0].clone(),
        lambda: tensor.to(torch.int64),
        lambda: tensor.bool(),
        lambda: torch.full_like(tensor, odd[int(rng.integers(len(odd)))]),
        lambda: tensor[:1].clone(),
    ]
    choice = int(rng.integers(len(choices) + 1))
    if choice < len(choices):
        tensors[name] = choices[choice]()


def _is_detector(read: Any) -> bool:
    """Whether it can be used: finite rows and numbers, thresholds that tell, parameters or a ValueError."""
    detector, header, _ = read
    try:
        recorded_parameters(header.preprocessing)
    except ValueError:
        return True
    finite = all(bool(bank.rows.isfinite().all()) and len(bank.rows) for bank in detector.banks.values())
    if header.calibration is None:
        return finite
    calibration = Calibration.from_dict(header.calibration)
    score = Score(1.5, np.zeros((2, 2), np.float32))
    return finite and 0 <= calibration.calibrated(score) <= 1 and np.isfinite(calibration.colors()).all()


def _figures() -> list[bytes]:
    figures = ClassFigures(
        curves={"pro": [[0.0, 0.0], [0.3, 1.0]]},
        kinds=[Kind("hole", 2, {"image_auroc": 0.5, "au_pro": None}, 1)],
        cases=[Case("highest_good", "test/good/rgb/000.png", 0, 1.5, "AAAA")],
        limits=[0.0, 1.0],
        thresholds=Thresholds(1.0, 2.0, "max of 2 good parts"),
    )
    with TemporaryDirectory() as folder:
        write_figures(Path(folder), "bagel", figures)
        return [(Path(folder) / "report/bagel.json").read_bytes()]


PREPROCESSED = [
    {"plane_distance": 0.004, "unit": "m"},
    *(
        {
            "sample": f"bagel/train/good/{i}",
            "files": {f"bagel/train/good/xyz/{i}.tiff": 3},
            "report": {"odd": {}},
        }
        for i in range(3)
    ),
]
CAMERAS = (
    {"fx": 300.0, "fy": 301.0, "cx": 14.6, "cy": 9.7, "k1": 0.1, "width": 30, "height": 20},
    {
        **{"camera_type": "area_scan_division", "focus": 0.01, "kappa": 0.0, "sx": 4e-6, "sy": 4e-6},
        **{"cx": 3.0, "cy": 2.0, "image_width": 6, "image_height": 4},
    },
)
DOWNLOADED = {"a.pth": {"url": "https://example.org/a.pth", "size": 3, "sha256": "0" * 64}}


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _lines(values: list[Any]) -> list[bytes]:
    return [b"".join(json.dumps(value).encode() + b"\n" for value in values)]


def _scores_csv() -> list[bytes]:
    text = io.StringIO()
    csv.writer(text).writerows(
        [["path", "label", "score"], ["test/good/rgb/000.png", 0, 1.5], ["a,b", "", 2.5]]
    )
    return [text.getvalue().encode()]


def _eyecandies_depth(path: Path) -> np.ndarray:
    """Depth by the limits at `path`."""
    depth = path.with_name("depth.png")
    if not depth.exists():
        depth.write_bytes(_depth_png())
    return read_depth(depth, path)


def _eyecandies_png(path: Path) -> np.ndarray:
    limits = path.with_name("limits.yaml")
    limits.write_text("normalization:\n  max: 5.0\n  min: 2.0\n")
    return read_depth(path, limits)


def _is_depth(value: np.ndarray) -> bool:
    return value.ndim == 2 and bool(np.isfinite(value).all() and (value > 0).all())


YAML = (
    b"normalization:\n  max: 5.0\n  min: 2.0\n",
    b"a: &a [1, 2]\nb: [*a, *a]\nnormalization: {min: 2, max: 1.6e+1, t: 2001-12-14, <<: {x: !!str 1}}\n",
)

READERS = {
    "xyz tiff": Reader("a.tiff", _tiffs, read_xyz, SampleFileError, _is_cloud),
    "rgb png": Reader(
        "a.png", lambda: [encode_png(IMAGE)], read_rgb, SampleFileError, partial(_is_pixels, 3), damaged_png
    ),
    "mask png": Reader(
        "a.png",
        lambda: [encode_png(IMAGE[..., 0]), *_images(("1", "PNG"))],
        read_mask,
        SampleFileError,
        partial(_is_pixels, 2),
        damaged_png,
    ),
    "header of an image": Reader(
        "a.png", _rgb_png, image_shape, SampleFileError, lambda s: min(s) >= 0, damaged_png
    ),
    "png": Reader(
        "a.png",
        lambda: [*_images(*((mode, "PNG") for mode in ("RGB", "RGBA", "LA", "P", "L"))), _depth_png()],
        lambda path: load_image(path).pixels,
        SampleFileError,
        partial(_is_pixels, 3),
        damaged_png,
    ),
    "jpeg": Reader(
        "a.jpg",
        lambda: _images(("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG")),
        lambda path: load_image(path).pixels,
        SampleFileError,
        partial(_is_pixels, 3),
    ),
    "bmp, tiff, webp, ppm": Reader(
        "a.img",
        lambda: _images(
            ("RGB", "BMP"), ("RGBA", "TIFF"), ("P", "TIFF"), ("RGB", "WEBP"), ("L", "PPM"), ("1", "BMP")
        ),
        lambda path: load_image(path).pixels,
        SampleFileError,
        partial(_is_pixels, 3),
    ),
    "mask of any format": Reader(
        "a.img",
        lambda: _images(
            ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "BMP"), ("L", "TIFF"), ("L", "PPM")
        ),
        lambda path: load_mask(path).pixels,
        SampleFileError,
        partial(_is_pixels, 2),
        damaged_png,
    ),
    "PLY": _cloud_reader("a.ply", _ply_seeds),
    "PCD": _cloud_reader("a.pcd", _pcd_seeds),
    "npy": _cloud_reader("a.npy", lambda: [_npy(CLOUD), _npy(CLOUD.astype(float)), _npy(DEPTH)]),
    "npz": _cloud_reader(
        "a.npz", lambda: [_npz(False, xyz=CLOUD, m=DEPTH), _npz(True, a=CLOUD)], damaged_member
    ),
    "tiff of any cloud": _cloud_reader(
        "b.tif", lambda: [*_tiffs(), *_written(partial(tifffile.imwrite, data=DEPTH))]
    ),
    "depth png": _cloud_reader("a.png", lambda: [_depth_png()], damaged_png),
    "camera json": Reader(
        "camera.json",
        lambda: _json(*CAMERAS),
        read_camera,
        SampleFileError,
        lambda camera: isinstance(camera, PinholeCamera | DivisionCamera),
        tampered_json,
    ),
    "pth": Reader(
        "a.pth",
        lambda: _checkpoints(True),
        partial(read_torch_file, remedy="get another"),
        CheckpointError,
        lambda _: True,
        damaged_member,
    ),
    "pth, old": Reader(
        "a.pth",
        lambda: _checkpoints(False),
        partial(read_torch_file, remedy="get another"),
        CheckpointError,
        lambda _: True,
    ),
    "UFF checkpoint": Reader(
        "a.pth", lambda: _checkpoints(True), _read_uff, CheckpointError, bool, damaged_member
    ),
    "released features": Reader("a.pt", _released, _read_released, CheckpointError, bool, damaged_member),
    "weights npz": Reader(
        "a.npz",
        lambda: [_npz(True, kernel=np.ones((3, 4)), bias=np.ones(4)), _npz(False, a=np.ones(2))],
        partial(read_numpy_headers, remedy="get another"),
        CheckpointError,
        lambda headers: all(min(h.shape, default=0) >= 0 for h in headers.values()),
        damaged_member,
    ),
    "features npz": Reader(
        "bagel_000.npz",
        lambda: _stored("bagel_000.npz"),
        partial(read_sample, meta=STORE_META),
        CheckpointError,
        _is_stored_sample,
        damaged_member,
    ),
    "features manifest": Reader(
        MANIFEST_NAME,
        lambda: _stored(MANIFEST_NAME),
        lambda path: read_manifest(path.parent),
        ValueError,
        lambda read: all(isinstance(n, int) and n >= 0 and "/" not in name for name, n in read[1].items()),
        tampered_json,
    ),
    "detector": Reader(
        "a.m3dm",
        _detector_files,
        partial(read_detector, device=torch.device("cpu")),
        DetectorFileError,
        _is_detector,
        _signed_again,
    ),
    "preprocessing record": Reader(
        RECORD_NAME,
        lambda: _lines(PREPROCESSED),
        lambda path: read_record(path.parent),
        RecordError,
        lambda read: all(".." not in name for entry in read[1].values() for name in entry["files"]),
        tampered_json,
    ),
    "report json": Reader(
        "report/bagel.json",
        _figures,
        lambda path: read_figures(path.parents[1], "bagel"),
        (),
        lambda figures: figures is None or isinstance(figures, ClassFigures),
        tampered_json,
    ),
    "scores csv": Reader(
        "scores/bagel.csv",
        _scores_csv,
        lambda path: _scores(path.parents[1], "bagel"),
        (),
        lambda v: isinstance(v, dict),
    ),
    "downloads json": Reader(
        DOWNLOADS,
        lambda: _json(DOWNLOADED),
        lambda path: read_downloads(path.parent),
        ValueError,
        lambda read: isinstance(read, dict),
        tampered_json,
    ),
    "part of a download": Reader(
        "a.json",
        lambda: _json({"url": "https://example.org", "validator": "x"}),
        lambda path: PartFile(path.with_name("a")).validator("https://example.org"),
        (),
        lambda text: isinstance(text, str),
        tampered_json,
    ),
    "Eyecandies yaml": Reader(
        "limits.yaml", lambda: list(YAML), _eyecandies_depth, SampleFileError, _is_depth
    ),
    "Eyecandies depth": Reader(
        "depth.png", lambda: [_depth_png()], _eyecandies_png, SampleFileError, _is_depth, damaged_png
    ),
    "Eyecandies pose": Reader(
        "pose.txt",
        lambda: [b"1 0 0 0\n0 1 0 0\n0 0 1 2.5e-1\n0 0 0 1\n"],
        read_pose,
        SampleFileError,
        lambda pose: pose.shape == (4, 4) and bool(np.isfinite(pose).all()),
    ),
}
