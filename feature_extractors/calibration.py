"""From scores to verdicts: thresholds from good parts that did not feed the banks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

import numpy as np

from utils.schema import check_fields
from utils.structures import Score, Thresholds

FEW_PARTS = 10  # held-out parts below which a threshold says little
LARGEST_SCORE = 1e30  # of a file that is believed
MAX, QUANTILE, SIGMA = "max", "quantile", "sigma"
RULE_HELP = "max, quantile:Q (0 < Q <= 1) or sigma:K (mean + K standard deviations)"


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold follows from the scores of held-out good parts; `text` as in --threshold_rule."""

    text: str = MAX

    def __post_init__(self) -> None:
        self._parsed()

    def threshold(self, values: np.ndarray) -> float:
        """Of values (n,), n >= 1; what is larger is anomalous."""
        kind, number = self._parsed()
        if kind == MAX:
            return float(values.max())
        if kind == QUANTILE:
            return float(np.quantile(values, number))
        return float(values.mean() + number * values.std())

    def _parsed(self) -> tuple[str, float]:
        kind, _, number = self.text.partition(":")
        try:
            value = float(number) if number else math.nan
        except ValueError:
            value = math.nan
        allowed = {MAX: not number, QUANTILE: 0 < value <= 1, SIGMA: math.isfinite(value)}
        if not allowed.get(kind, False):
            raise ValueError(f"--threshold_rule {self.text}: must be {RULE_HELP}")
        return kind, value


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and the held-out scores that they follow from.

    origin: which parts were held out. image_scores: of each; pixel_scores: the largest of each part's map. Scores above
    a threshold are anomalous. pixel_floor: the median of all held-out pixels, for colors.
    """

    rule: str
    origin: str
    image_scores: list[float]
    pixel_scores: list[float]
    image_threshold: float
    pixel_threshold: float
    pixel_floor: float

    @classmethod
    def of(cls, scores: Sequence[Score], rule: ThresholdRule, origin: str) -> Calibration:
        """Raises ValueError when there is no score."""
        if not scores:
            raise ValueError(f"no part of {origin} can be scored, so there is no threshold")
        images = np.array([score.image for score in scores])
        pixels = np.array([score.map.max() for score in scores], dtype=np.float64)
        return cls(
            rule=rule.text,
            origin=origin,
            image_scores=images.tolist(),
            pixel_scores=pixels.tolist(),
            image_threshold=rule.threshold(images),
            pixel_threshold=rule.threshold(pixels),
            pixel_floor=float(np.median(np.stack([score.map for score in scores]))),
        )

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """What `as_dict` gave. Raises ValueError."""
        hints = get_type_hints(cls)
        check_fields(values, {item.name: hints[item.name] for item in fields(cls)})
        calibration = cls(**values)
        thresholds = (calibration.image_threshold, calibration.pixel_threshold, calibration.pixel_floor)
        numbers = [*calibration.image_scores, *calibration.pixel_scores, *thresholds]
        if not calibration.image_scores or not all(abs(number) <= LARGEST_SCORE for number in numbers):
            raise ValueError("a calibration without scores, or with one that no part has")  # NaN is one
        return calibration

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def is_anomalous(self, score: Score) -> bool:
        return score.image > self.image_threshold

    @property
    def thresholds(self) -> Thresholds:
        """For pictures and reports."""
        origin = f"{self.rule} of {len(self.image_scores)} good parts ({self.origin})"
        return Thresholds(self.image_threshold, self.pixel_threshold, origin)

    def calibrated(self, score: Score) -> float:
        """A score for people, between 0 and 1: 0.5 at the threshold, rising with the score.

        0.5 + arctan((score - threshold) / spread) / pi, the spread being the held-out scores' standard deviation.
        """
        spread = float(np.std(self.image_scores)) or abs(self.image_threshold) or 1.0
        return 0.5 + math.atan((score.image - self.image_threshold) / spread) / math.pi

    def colors(self) -> tuple[float, float]:
        """The scores that get the first and the last color; the pixel threshold gets the middle one."""
        return self.pixel_floor, 2 * self.pixel_threshold - self.pixel_floor

    def warning(self) -> str | None:
        """What to say when so few parts were held out that the threshold is a guess."""
        count = len(self.image_scores)
        if count >= FEW_PARTS:
            return None
        return (
            f"the threshold rests on {count} good parts that were held out: about one good part in {count + 1} "
            f"scores above the largest of {count}; hold out at least {FEW_PARTS}"
        )
