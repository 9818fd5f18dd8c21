"""The table of `--method_name`: what each method stores and how it decides, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bank = Literal[
    "xyz", "rgb", "fusion"
]  # the same names as utils.structures.Modality, which would import torch
Standardize = Literal["none", "own", "xyz_mean_rgb_std"]


@dataclass(frozen=True)
class MethodSpec:
    """One `--method_name` as data; the values are those of the released code.

    banks: the memory banks, in the column order of the decision's input. decision: "sum" adds the banks' scores
    and maps (with one bank: takes them as they are), "ocsvm" is decision layer fusion. standardize: whose mean
    and std the banks use. reweight_eps: added to the denominator of the image score's weight. distance_scale:
    divides s*, r_1 and r_2 in the image score. zero_row: drop the coreset's xyz rows that hold an exact 0 and
    append one row of zeros. xyz_stride: pixels per side of an xyz patch.
    """

    banks: tuple[Bank, ...]
    decision: Literal["sum", "ocsvm"]
    standardize: Standardize
    reweight_eps: float = 0.0
    distance_scale: float = 1.0
    zero_row: bool = False
    xyz_stride: int = 4

    @property
    def uses_rgb(self) -> bool:
        return self.banks != ("xyz",)

    @property
    def uses_xyz(self) -> bool:
        return self.banks != ("rgb",)

    @property
    def uses_fusion(self) -> bool:
        return "fusion" in self.banks

    @property
    def memory_bank(self) -> str:
        """The value of `--memory_bank` that goes with the method."""
        return "single" if len(self.banks) == 1 else "multiple"


METHODS = {
    "DINO": MethodSpec(("rgb",), "sum", "own", reweight_eps=1e-5),
    "Point_MAE": MethodSpec(("xyz",), "sum", "none", reweight_eps=1e-5),
    "Fusion": MethodSpec(("fusion",), "sum", "none"),
    "DINO+Point_MAE": MethodSpec(("xyz", "rgb"), "ocsvm", "xyz_mean_rgb_std", distance_scale=1000.0),
    "DINO+Point_MAE+add": MethodSpec(("xyz", "rgb"), "sum", "xyz_mean_rgb_std"),
    "DINO+Point_MAE+Fusion": MethodSpec(("xyz", "rgb", "fusion"), "ocsvm", "xyz_mean_rgb_std", zero_row=True),
    "FPFH": MethodSpec(("xyz",), "sum", "none", xyz_stride=8),
}

XYZ_DIMS = {"Point_MAE": 1152, "Point_Bert": 1152, "FPFH": 33}  # of --xyz_backbone_name


def default_xyz_backbone(method_name: str) -> str:
    """The xyz backbone that a method uses unless told otherwise; the method FPFH has no other."""
    return "FPFH" if method_name == "FPFH" else "Point_MAE"
