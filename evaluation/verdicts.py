"""What becomes of a judged part: its line on the screen, its row in the report, its map, overlay and colored cloud."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.console import encodable, one_line
from utils.formats.parts import Part
from utils.part_reader import PartReader
from utils.verdict_folder import COLUMNS, KINDS, PAGE_NAME, TABLE_NAME, Identity, append_row, identities

if TYPE_CHECKING:
    import numpy as np

    from feature_extractors.calibration import Calibration
    from utils.structures import Score

GOOD, ANOMALOUS, NO_VERDICT = "good", "anomalous", "no threshold"
MAP_PERCENTILES = (0.5, 99.9)  # of a map, for colors, where there is no calibration


@dataclass
class Output:
    """A line on the screen for each part, and under `folder`, where there is one, the report and the pictures."""

    folder: Path | None
    reader: PartReader
    calibration: Calibration | None
    view: bool
    begun: bool = False  # whether the report has a row of this run
    parts: dict[str, Part] = field(default_factory=dict)  # those with pictures, by their name in the report
    _kept: set[Identity] = field(default_factory=set)

    def keep(self, parts: Iterable[Part]) -> None:
        """From now on the files of these parts, and of no others, are neither replaced nor removed."""
        paths = (path for part in parts for path in (part.xyz, part.rgb) if path is not None)
        self._kept = {identity for path in paths for identity in identities(path)}

    def find_conflict(self, part: Part) -> str | None:
        """What of a part's pictures would replace a file that is to stay, in words; None if nothing does."""
        for path in self._files(part):
            if self._is_kept(path):
                return f"{path}: is the file of a part, and would be replaced; name another --output"
        return None

    def take(self, part: Part, score: Score | None, milliseconds: float, problem: str) -> str:
        """Write what is to be seen of a part, and its row in the report, then print its line: what is on the screen is
        in the report. Returns why it was not judged, "" if it was.
        """
        try:
            if score is not None:
                try:
                    self.write_files(part, score)
                except ValueError as error:  # the file has changed since it was scored
                    score, problem = None, str(error)
            if score is None:
                self._remove_files(part)
            self._write_row(self._row(part, score, milliseconds, problem))
        except BaseException:
            self._remove_files(part)  # there are no pictures of a part that the report does not have
            raise
        if score is None:
            print(one_line(f"{part.name}: not judged: {problem}"), file=sys.stderr, flush=True)
        else:
            print(one_line(f"{part.name}: {self._in_words(score)}, {milliseconds:.0f} ms"), flush=True)
        return problem

    def _write_row(self, row: Mapping[str, object]) -> None:
        if self.folder is None:
            return
        if not self.begun:
            (self.folder / PAGE_NAME).unlink(missing_ok=True)  # of an earlier run, and so of other parts
            append_row(self.folder / TABLE_NAME, COLUMNS, "wb")
            self.begun = True
        append_row(self.folder / TABLE_NAME, [row[column] for column in COLUMNS])

    def write_files(self, part: Part, score: Score) -> None:
        """The map, the overlay and the colored cloud, all in the geometry of the camera's own image."""
        if self.folder is None and not self.view:
            return
        from utils.annotate import colored
        from utils.image_files import write_png
        from utils.pictures import overlay, write_colored_cloud, write_map

        seen = self.reader.view(part)
        shape = (seen.rgb.shape[0], seen.rgb.shape[1])
        anomaly_map = self._in_camera(score, shape)
        limits = self._limits(anomaly_map)
        colors = colored(anomaly_map, limits)
        if self.folder is not None:
            threshold = self.calibration.pixel_threshold if self.calibration else None
            write_map(self._file(part, "maps"), anomaly_map)
            picture = overlay(seen.rgb, anomaly_map, limits, threshold)
            write_png(self._file(part, "overlays"), picture)
            write_colored_cloud(self._file(part, "clouds"), seen.cloud, colors)
            self.parts[encodable(part.name)] = part
        if self.view:
            show_cloud(one_line(part.name), seen.cloud, colors)

    def picture_of(self, name: str) -> str | None:
        """A part's picture for the report; None where its files are not there, or not any more."""
        import tifffile

        from utils.pictures import MapScale
        from utils.report.figures import encode_picture

        if name not in self.parts:
            return None
        part, threshold = self.parts[name], self.calibration.pixel_threshold if self.calibration else None
        try:
            image = self.reader.view(part).rgb
            anomaly_map = tifffile.imread(self._file(part, "maps"))
        except (OSError, ValueError):
            return None
        return encode_picture(image, None, anomaly_map, MapScale(self._limits(anomaly_map), threshold))

    def _in_camera(self, score: Score, shape: tuple[int, int]) -> np.ndarray:
        from utils.pictures import resize_map
        from utils.preprocess.sample import square_side

        if self.reader.parameters is None:
            return resize_map(score.map, shape)
        side = square_side(shape)
        return self.reader.in_camera(resize_map(score.map, (side, side)), shape)

    def _limits(self, anomaly_map: np.ndarray) -> tuple[float, float]:
        import numpy as np

        if self.calibration is not None:
            return self.calibration.colors()
        low, high = np.percentile(anomaly_map, MAP_PERCENTILES)
        return float(low), float(high)

    def _file(self, part: Part, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / kind / part.folder / f"{part.stem}{KINDS[kind]}"

    def _files(self, part: Part) -> list[Path]:
        return [] if self.folder is None else [self._file(part, kind) for kind in KINDS]

    def _is_kept(self, path: Path) -> bool:
        return not self._kept.isdisjoint(identities(path)[:1])

    def _remove_files(self, part: Part) -> None:
        """Those that an earlier run left: of a part that is not judged there is nothing to see."""
        for path in self._files(part):
            if not self._is_kept(path):
                path.unlink(missing_ok=True)
        self.parts.pop(encodable(part.name), None)

    def _row(self, part: Part, score: Score | None, milliseconds: float, problem: str) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {"part": part.name, "milliseconds": round(milliseconds), "problem": problem}
        if score is not None:
            row |= {"score": repr(score.image), "verdict": NO_VERDICT}
        if score is not None and self.calibration is not None:
            row["calibrated"] = f"{self.calibration.calibrated(score):.4f}"
            row["threshold"] = repr(self.calibration.image_threshold)
            row["verdict"] = ANOMALOUS if self.calibration.is_anomalous(score) else GOOD
        return row

    def _in_words(self, score: Score) -> str:
        if self.calibration is None:
            return f"score {score.image:.6g}, {NO_VERDICT}"
        verdict = ANOMALOUS if self.calibration.is_anomalous(score) else GOOD
        return (
            f"{verdict}, {self.calibration.calibrated(score):.2f} (0.5 = threshold), score {score.image:.6g}, "
            f"threshold {self.calibration.image_threshold:.6g}"
        )


def show_cloud(title: str, cloud: np.ndarray, colors: np.ndarray) -> None:
    """Show the measured points in a window. Raises ValueError when Open3D can't be used here."""
    try:
        import open3d
    except Exception as error:  # its system libraries may be missing
        raise ValueError(
            f"--view: Open3D can't be used here ({error}); see the .ply files in --output"
        ) from error
    measured = (cloud != 0).any(axis=2)
    points = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud[measured].astype(float)))
    points.colors = open3d.utility.Vector3dVector(colors[measured] / 255.0)
    open3d.visualization.draw_geometries([points], window_name=title)
