"""From a camera's files to what a detector takes: read, brought to metres, preprocessed as the training parts were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from utils.formats.clouds import load_cloud, told_unit
from utils.formats.images import read_image
from utils.formats.organised import CloudOptions, in_metres
from utils.formats.parts import Part
from utils.image_files import SampleFileError, read_xyz
from utils.plausibility import Unit, guess_unit, implausible_distance, looks_preprocessed, looks_raw
from utils.preprocess.driver import UNUSABLE
from utils.preprocess.sample import Parameters, Report, crop_from_square, preprocess_sample
from utils.preprocess.sample import in_metres as cloud_in_metres
from utils.schema import check_fields

DATA_SET_SUFFIX = ".tiff"  # read as main.py and utils/preprocessing.py read it, to the last point


@dataclass(frozen=True)
class View:
    """What the camera saw: image (H, W, 3) uint8, cloud (H, W, 3) float32 in metres, zeros = not measured."""

    rgb: np.ndarray
    cloud: np.ndarray


@dataclass(frozen=True)
class PartReader:
    """Reads parts for a detector; picklable, for the loader's workers.

    parameters: of the preprocessing that the detector's training parts went through; None = parts come preprocessed.
    options: what the clouds don't say of themselves.
    """

    parameters: Parameters | None
    options: CloudOptions

    def view(self, part: Part) -> View:
        """The part as the camera saw it. Raises SampleFileError."""
        image = None if part.rgb is None else read_image(part.rgb)
        cloud, colors = self._cloud(part.xyz, None if image is None else image.shape[1::-1])
        if (reason := implausible_distance(cloud)) is not None:
            raise SampleFileError(part.xyz, reason, "is it in the unit that --unit says?")
        image = colors if image is None else image
        if image is None:
            raise SampleFileError(
                part.xyz, "comes without an image, and has no colors", "give its image as well"
            )
        if image.shape[:2] != cloud.shape[:2]:
            sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (cloud, image)]
            raise SampleFileError(
                part.xyz,
                f"has {sizes[0]} pixels, the image {sizes[1]}",
                "the two must show the same pixels",
            )
        return View(image, cloud)

    def model_view(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Image and cloud as the detector's training parts were. Raises SampleFileError."""
        view = self.view(part)
        if self.parameters is None:
            if (reason := looks_raw(view.cloud)) is not None:
                raise SampleFileError(
                    part.xyz, f"does not look preprocessed ({reason})", "leave out --preprocessed"
                )
            return view.rgb, view.cloud
        if looks_preprocessed(view.cloud):
            raise SampleFileError(part.xyz, "looks preprocessed already", "add --preprocessed")
        name = part.name.encode("utf-8", "surrogateescape")  # file names need be no UTF-8
        rng = np.random.default_rng([self.parameters.seed, *name])
        cloud, rgb, report = preprocess_sample(view.cloud, view.rgb, self.parameters, rng)
        _check_seen(part.xyz, report)
        return rgb, cloud

    def in_camera(self, square: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """A map at the preprocessed size, (side, side), as the camera's image (H, W) has it."""
        return square if self.parameters is None else crop_from_square(square, shape)

    def _cloud(self, path: Path, image_size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray | None]:
        if path.suffix == DATA_SET_SUFFIX:
            cloud, unit = read_xyz(path), self.options.unit
            if unit == "auto":
                unit = _told_unit(path, cloud)
            return cloud_in_metres(cloud, unit), None
        options = CloudOptions(**{**vars(self.options), "image_size": image_size})
        stored = load_cloud(path, options)
        unit = "m" if stored.in_metres else options.unit
        return in_metres(stored.points, told_unit(path, stored) if unit == "auto" else unit), stored.colors


def recorded_parameters(preprocessing: dict[str, Any] | None) -> Parameters | None:
    """The parameters that a data set's record holds; None where there are none. Raises ValueError for odd ones."""
    hints = get_type_hints(Parameters)
    if preprocessing is None or not hints.keys() <= preprocessing.keys():
        return None
    values = {name: preprocessing[name] for name in hints}
    check_fields(values, hints)
    return Parameters(**values)


def _check_seen(path: Path, report: Report) -> None:
    """Raises SampleFileError when nothing is left that could be the part; so little would be called good."""
    found = [f"{kind}: {detail}" for kind, detail in report.odd.items() if kind in UNUSABLE]
    if found:
        raise SampleFileError(
            path, f"shows no part ({'; '.join(found)})", "is the part there, with a plane behind it?"
        )


def _told_unit(path: Path, cloud: np.ndarray) -> Unit:
    try:
        return guess_unit([cloud])
    except ValueError as error:
        raise SampleFileError(path, "is in an unknown unit", str(error)) from error
