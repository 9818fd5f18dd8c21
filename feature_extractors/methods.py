"""The table of `--method_name`: which banks a method holds and how it decides, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from utils.structures import Modality

Standardize = Literal["none", "own", "shared"]
Decision = Literal["sum", "ocsvm"]
DECISIONS: dict[Decision, str] = {"sum": "sum", "ocsvm": "one-class SVMs"}

# A fused patch is made of the other two.
MADE_OF: dict[Modality, tuple[Modality, ...]] = {"xyz": ("xyz",), "rgb": ("rgb",), "fusion": ("xyz", "rgb")}


@dataclass(frozen=True)
class BankSpec:
    """One memory bank of a method; the values are those of the released code.

    source: the patches that fill it. standardize: by no mean and std, by the bank's own, or by shared ones (the
    mean of the patches in the xyz bank, the std of all rgb patches). limited: with `--asy_memory_bank K` only the
    first K samples feed it. zero_row: rows of the coreset that hold an exact 0 give way to one row of zeros.
    score_factor, map_factor: of the bank's image score and map before the one-class SVMs (the lambdas).
    """

    source: Modality
    standardize: Standardize = "none"
    limited: bool = False
    zero_row: bool = False
    score_factor: float = 1.0
    map_factor: float = 1.0


@dataclass(frozen=True)
class MethodSpec:
    """One `--method_name`.

    banks: in the column order of the decision's input. decision: "sum" adds the banks' scores and maps (with
    one bank: takes them as they are), "ocsvm" is decision layer fusion. reweight_eps: added to the denominator
    of the image score's weight. distance_scale: divides s*, r_1 and r_2 in the image score. xyz_backbone: the only
    one that the method takes; None = `--xyz_backbone_name` decides.
    """

    banks: tuple[BankSpec, ...]
    decision: Decision = "sum"
    reweight_eps: float = 0.0
    distance_scale: float = 1.0
    xyz_backbone: str | None = None

    @property
    def sources(self) -> tuple[Modality, ...]:
        """What fills the banks, in column order."""
        return tuple(bank.source for bank in self.banks)

    @property
    def backbones(self) -> frozenset[Modality]:
        """The modalities whose backbone the method needs."""
        return frozenset(part for source in self.sources for part in MADE_OF[source])

    @property
    def summary(self) -> str:
        """For --help."""
        banks = ", ".join(self.sources)
        return banks if len(self.banks) == 1 else f"{banks} by {DECISIONS[self.decision]}"

    @property
    def memory_bank(self) -> str:
        """The value of `--memory_bank` that goes with the method."""
        return "single" if len(self.banks) == 1 else "multiple"


_XYZ, _RGB = BankSpec("xyz", "shared"), BankSpec("rgb", "shared", score_factor=0.1, map_factor=0.1)

METHODS = {
    "DINO": MethodSpec((BankSpec("rgb", "own"),), reweight_eps=1e-5),
    "Point_MAE": MethodSpec((BankSpec("xyz"),), reweight_eps=1e-5),
    "Fusion": MethodSpec((BankSpec("fusion"),)),
    "DINO+Point_MAE": MethodSpec((_XYZ, _RGB), "ocsvm", distance_scale=1000.0),
    "DINO+Point_MAE+add": MethodSpec((_XYZ, _RGB)),
    "DINO+Point_MAE+Fusion": MethodSpec(
        (
            dataclasses.replace(_XYZ, limited=True, zero_row=True),
            _RGB,
            BankSpec("fusion", "shared", limited=True),
        ),
        "ocsvm",
    ),
    "FPFH": MethodSpec((BankSpec("xyz"),), xyz_backbone="FPFH"),
}
