"""One part from the sensor's files to those of a data set: rgb png, xyz tiff in metres, gt png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from utils.files import atomic_path
from utils.formats.clouds import load_cloud, told_unit
from utils.formats.images import LoadedImage, load_image, load_mask
from utils.formats.organised import CloudOptions, StoredCloud, in_metres
from utils.formats.parts import Part
from utils.image_files import SampleFileError, encode_png, encode_xyz
from utils.plausibility import guess_unit

UNIT_SAMPLES = 9  # clouds that tell the unit of all
UNIT_NAMES = {"m": "metres", "mm": "millimetres"}


@dataclass(frozen=True)
class Conversion:
    """What applies to all parts. With `unit_told` the unit was read off some clouds, and the others must agree."""

    output: Path
    options: CloudOptions
    unit_told: bool
    overwrite: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a part: notes on what was changed, and the share of pixels with a point; or why it failed."""

    name: str
    notes: tuple[str, ...] = ()
    measured: float = 0.0
    problem: str = ""


def tell_unit(parts: Sequence[Part], options: CloudOptions) -> Literal["m", "mm"] | None:
    """The unit of the parts' clouds, by the distances in some of them; None when all tell metres themselves.

    Raises ValueError when they tell no unit, or different ones. Clouds that can't be read are passed over here.
    """
    chosen = np.unique(np.linspace(0, len(parts) - 1, min(UNIT_SAMPLES, len(parts))).round().astype(int))
    loaded = [_load_if_possible(parts[i], options) for i in chosen]
    clouds = [stored.points for stored in loaded if stored is not None and not stored.in_metres]
    return guess_unit(clouds) if clouds else None


def convert_part(part: Part, conversion: Conversion) -> Outcome:
    """Write the files of a part; a problem with its own files is told in the outcome. Raises OSError on writing."""
    try:
        return _convert(part, conversion)
    except SampleFileError as error:
        return Outcome(part.name, problem=str(error))


def _convert(part: Part, conversion: Conversion) -> Outcome:
    image = load_image(part.rgb) if part.rgb else None
    stored = load_cloud(part.xyz, _with_image_size(conversion.options, image))
    cloud = _metres(part.xyz, stored, conversion)
    pixels = _pixels(part, image, stored)
    _check_size(part.rgb or part.xyz, pixels, part.xyz, cloud, image)
    contents = {"xyz": encode_xyz(cloud), "rgb": encode_png(pixels)}
    notes = list(image.notes) if image else ["image made of the cloud's colours"]
    if part.mask:
        mask = load_mask(part.mask)
        _check_size(part.mask, mask.pixels, part.xyz, cloud, mask)
        contents["gt"] = encode_png(mask.pixels)
        notes += mask.notes
    measured = float((cloud[..., 2] != 0).mean())
    if not measured:
        raise SampleFileError(part.xyz, "has no measured point", "record the part again, or leave it out")
    if not _write(_targets(part, conversion.output), contents, conversion.overwrite):
        notes.append("was there with the same content")
    return Outcome(part.name, tuple(notes), measured)


def _with_image_size(options: CloudOptions, image: LoadedImage | None) -> CloudOptions:
    """The image tells the size of a bare list of points, unless EXIF turned it, which the cloud was not."""
    if image is None or image.turned_aside:
        return options
    height, width = image.pixels.shape[:2]
    return replace(options, image_size=(width, height))


def _load_if_possible(part: Part, options: CloudOptions) -> StoredCloud | None:
    try:
        image = load_image(part.rgb) if part.rgb else None
        return load_cloud(part.xyz, _with_image_size(options, image))
    except SampleFileError:
        return None  # it fails by name when its turn comes


def _metres(path: Path, stored: StoredCloud, conversion: Conversion) -> np.ndarray:
    if stored.in_metres:
        return in_metres(stored.points, "m")
    unit = conversion.options.unit
    if unit == "auto" or conversion.unit_told:
        told = told_unit(path, stored)
        if unit not in ("auto", told):
            raise SampleFileError(
                path,
                f"looks like {UNIT_NAMES[told]} where other clouds are in {UNIT_NAMES[unit]}",
                "convert it apart, or name the unit of all with --unit",
            )
        unit = told
    return in_metres(stored.points, unit)


def _pixels(part: Part, image: LoadedImage | None, stored: StoredCloud) -> np.ndarray:
    if image is not None:
        return image.pixels
    if stored.colors is None:
        raise SampleFileError(
            part.xyz, "has no colours, and there is no image", "name the image with --rgb or --rgb_pattern"
        )
    return stored.colors


def _check_size(
    path: Path, pixels: np.ndarray, cloud_path: Path, cloud: np.ndarray, image: LoadedImage | None
) -> None:
    if pixels.shape[:2] == cloud.shape[:2]:
        return
    (height, width), (rows, columns) = pixels.shape[:2], cloud.shape[:2]
    turned = " (turned upright by its EXIF tag)" if image is not None and image.turned_aside else ""
    raise SampleFileError(
        path,
        f"has {width}x{height} pixels{turned}, its cloud {cloud_path.name} {columns}x{rows}",
        "both must show the same pixels: "
        + ("remove the EXIF tag, or turn the cloud" if turned else "export both at the sensor's own size"),
    )


def _targets(part: Part, output: Path) -> dict[str, Path]:
    folder = output / part.folder
    return {
        "xyz": folder / "xyz" / f"{part.stem}.tiff",
        "rgb": folder / "rgb" / f"{part.stem}.png",
        "gt": folder / "gt" / f"{part.stem}.png",
    }


def _write(targets: dict[str, Path], contents: dict[str, bytes], overwrite: bool) -> bool:
    """Write what is not there with this content; whether anything was. Raises SampleFileError before overwriting."""
    pending = {kind: data for kind, data in contents.items() if not _holds(targets[kind], data)}
    for kind in pending:
        if targets[kind].exists() and not overwrite:
            raise SampleFileError(
                targets[kind], "exists with other content", "name another --output, or add --overwrite"
            )
    for kind, data in pending.items():
        with atomic_path(targets[kind]) as temporary:
            temporary.write_bytes(data)
    return bool(pending)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
