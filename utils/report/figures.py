"""What the report shows of a class and no other file holds: curves, figures a defect, pictures of the extremes.

Collected when the class is evaluated, kept in `report/<class>.json` under the results.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from utils.files import read_regular, write_json
from utils.image_files import read_rgb
from utils.metrics import AU_PRO_LIMIT, Curve, Predictions, measure, roc_curve
from utils.pictures import MapScale, encode_jpeg, thumbnail
from utils.schema import check_fields
from utils.structures import SampleFiles, Thresholds

CASES = 4  # of each sort of extreme
CURVE_POINTS = 120
DIGITS = 5
LOWEST_DEFECTS, HIGHEST_GOOD, HIGHEST_DEFECTS, HIGHEST = (
    "lowest_defects",
    "highest_good",
    "highest_defects",
    "highest",
)


@dataclass(frozen=True)
class Kind:
    """The test samples of one kind (folder): metrics of its defects among all good samples, by key; above: how many
    score above the threshold, None without one.
    """

    name: str
    samples: int
    metrics: dict[str, float | None]
    above: int | None


@dataclass(frozen=True)
class Case:
    """One sample to look at; group: what makes it worth it; picture: a jpeg in base64."""

    group: str
    name: str
    label: int | None
    score: float
    picture: str


@dataclass(frozen=True)
class ClassFigures:
    """curves: by name, points (x, y); limits: the scores of the maps' first and last color."""

    curves: dict[str, list[list[float]]]
    kinds: list[Kind]
    cases: list[Case]
    limits: list[float]
    thresholds: Thresholds | None

    @classmethod
    def from_dict(cls, values: Any) -> ClassFigures:
        """What `asdict` gave. Raises ValueError."""
        _check(cls, values, kinds=list[Any], cases=list[Any], thresholds=Any)
        thresholds = values["thresholds"]
        return cls(
            curves=values["curves"],
            kinds=[Kind(**_check(Kind, row)) for row in values["kinds"]],
            cases=[Case(**_check(Case, row)) for row in values["cases"]],
            limits=values["limits"],
            thresholds=None if thresholds is None else Thresholds(**_check(Thresholds, thresholds)),
        )


def collect(
    files: Sequence[SampleFiles],
    scores: np.ndarray,
    maps: np.ndarray,
    predictions: Predictions,
    thresholds: Thresholds | None,
) -> ClassFigures:
    """Of the scored test samples of a class, as `EvaluatedClass` has them. Raises SampleFileError."""
    scale = MapScale.of(maps, thresholds.pixel if thresholds else None)
    known = [i for i, of_sample in enumerate(files) if of_sample.label is not None]
    masks = {} if predictions.masks is None else dict(zip(known, predictions.masks, strict=True))
    cases = []
    for group, i in _extremes([of_sample.label for of_sample in files], scores):
        picture = encode_picture(read_rgb(files[i].rgb), masks.get(i), maps[i], scale)
        cases.append(Case(group, files[i].path, files[i].label, float(scores[i]), picture))
    return ClassFigures(
        curves=_curves(predictions),
        kinds=_kinds([_kind(of_sample) for of_sample in files], known, scores, predictions, thresholds),
        cases=cases,
        limits=list(scale.limits),
        thresholds=thresholds,
    )


def write_figures(results: Path, class_name: str, figures: ClassFigures) -> None:
    write_json(_path(results, class_name), asdict(figures))


def read_figures(results: Path, class_name: str) -> ClassFigures | None:
    """None where the file is missing or can't be used: the report then says so."""
    try:
        return ClassFigures.from_dict(json.loads(read_regular(_path(results, class_name)).decode("utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def encode_picture(
    image: np.ndarray, mask: np.ndarray | None, anomaly_map: np.ndarray, scale: MapScale
) -> str:
    """A small jpeg in base64: the image (H, W, 3) with the mask's contour, and with the map; either of any size."""
    return base64.b64encode(
        encode_jpeg(np.concatenate(thumbnail(image, mask, anomaly_map, scale), axis=1))
    ).decode("ascii")


def _path(results: Path, class_name: str) -> Path:
    return results / "report" / f"{class_name}.json"


def _kind(of_sample: SampleFiles) -> str:
    return of_sample.rgb.parents[1].name


def _extremes(labels: Sequence[int | None], scores: np.ndarray) -> list[tuple[str, int]]:
    """Groups and samples: no sample twice. Without labels those with the highest scores."""
    order = np.argsort(scores, kind="stable").tolist()
    defects = [i for i in order if labels[i] == 1]
    good = [i for i in order if labels[i] == 0]
    if not defects:
        return [(HIGHEST, i) for i in order[::-1][:CASES]]
    low = min(CASES, (len(defects) + 1) // 2)
    high = min(CASES, len(defects) - low)
    return [
        *((LOWEST_DEFECTS, i) for i in defects[:low]),
        *((HIGHEST_GOOD, i) for i in good[::-1][:CASES]),
        *((HIGHEST_DEFECTS, i) for i in defects[::-1][:high]),
    ]


def _curves(predictions: Predictions) -> dict[str, list[list[float]]]:
    """Those that the labels allow."""
    curves = {}
    if predictions.image_ranking is not None:
        curves["image_roc"] = _thinned(roc_curve(predictions.image_ranking), 1.0)
    if predictions.pixel_ranking is not None:
        curves["pixel_roc"] = _thinned(roc_curve(predictions.pixel_ranking), 1.0)
    if predictions.exact_pro_curve is not None:
        curves["pro"] = _thinned(predictions.exact_pro_curve, AU_PRO_LIMIT)
    return curves


def _thinned(curve: Curve, limit: float) -> list[list[float]]:
    """The curve up to x = limit; of many points those at CURVE_POINTS places, denser where the curve begins."""
    x, y = curve.x, curve.y
    if len(x) > CURVE_POINTS:
        places = np.linspace(0, 1, CURVE_POINTS) ** 3 * limit
        x, y = places, np.interp(places, x, y)
    inside = x <= limit
    return np.stack([x[inside], y[inside]], axis=1).round(DIGITS).tolist()


def _kinds(
    names: Sequence[str],
    known: Sequence[int],
    scores: np.ndarray,
    predictions: Predictions,
    thresholds: Thresholds | None,
) -> list[Kind]:
    of_known = np.array([names[i] for i in known])
    kinds = []
    for name in sorted(set(names)):
        here = np.array(names) == name
        above = int((scores[here] > thresholds.image).sum()) if thresholds else None
        chosen = (of_known == name) | (predictions.labels == 0)
        metrics = _measured(predictions, chosen) if (predictions.labels[of_known == name] == 1).any() else {}
        kinds.append(Kind(name, int(here.sum()), metrics, above))
    return kinds


def _measured(predictions: Predictions, chosen: np.ndarray) -> dict[str, float | None]:
    """The metrics of some of the samples, `chosen` (n,) bool."""
    masks = None if predictions.masks is None else predictions.masks[chosen]
    part = Predictions(
        predictions.labels[chosen], predictions.scores[chosen], masks, predictions.maps[chosen]
    )
    return measure(part)


def _check(of_class: type, values: Any, **others: Any) -> dict[str, Any]:
    """The values, seen to be those of the class's fields; `others`: other hints than the class's. Raises ValueError."""
    hints = {**get_type_hints(of_class), **others}
    check_fields(values, {item.name: hints[item.name] for item in fields(of_class)})
    return dict(values)
