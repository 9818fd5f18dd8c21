"""All numbers a run depends on, in two frozen objects: the quirks of the released code, and the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from feature_extractors.methods import METHODS, XYZ_DIMS, MethodSpec

RGB_STRIDE = 8  # pixels per side of an rgb patch


@dataclass(frozen=True)
class Quirks:
    """Where the released code, its paper and we may differ; defaults are ours.

    Field by field (README, "Quirks"): which rgb patch is saved beside an xyz row for UFF training; whose
    statistics the group encoder's BatchNorm uses; whether DropPath is live while extracting; whose mean and std
    the banks use; how the coreset sizes are counted; the arithmetic of the greedy k-centre; what happens to
    rows of zeros; whether DINO+Point_MAE divides its distances by 1000; whether DINO and Point_MAE add 1e-5 in
    the weight; how the distances of the 3-NN interpolation are computed; whether the image score's weight
    leaves m* itself out; the blur; and whether one sample more than `--max_sample` is used.
    """

    uff_pairing: Literal["colocated", "scrambled"] = "colocated"
    batchnorm: Literal["cloud", "running"] = "cloud"
    drop_path: Literal["off", "live"] = "off"
    standardize: Literal["released", "own"] = "released"
    coreset_size: Literal["released", "each"] = "released"
    coreset_dtype: Literal["float16", "float32"] = "float16"
    zero_rows: Literal["released", "keep"] = "released"
    distance_scale: Literal["released", "none"] = "released"
    reweight_eps: Literal["released", "zero"] = "released"
    interpolation: Literal["released", "exact"] = "released"
    reweight_neighbours: Literal["without_self", "with_self"] = "without_self"
    blur: Literal["pil_8bit", "gaussian"] = "pil_8bit"
    sample_limit: Literal["max_sample", "one_more"] = "max_sample"

    def replace(self, changes: dict[str, str]) -> Quirks:
        """A copy with some fields changed.

        Raises ValueError for an unknown field or value.
        """
        allowed = quirk_values()
        for name, value in changes.items():
            if name not in allowed:
                raise ValueError(f"--quirk {name}: no such quirk; there are {', '.join(allowed)}")
            if value not in allowed[name]:
                raise ValueError(f"--quirk {name}={value}: must be one of {', '.join(allowed[name])}")
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def quirk_values() -> dict[str, tuple[str, ...]]:
    """The values that each quirk may have, ours first."""
    return {name: get_args(hint) for name, hint in get_type_hints(Quirks).items()}


PROTOCOLS = {
    "ours": Quirks(),
    "released": Quirks(uff_pairing="scrambled", drop_path="live", sample_limit="one_more"),
    "published": Quirks(
        batchnorm="running",
        standardize="own",
        coreset_size="each",
        coreset_dtype="float32",
        zero_rows="keep",
        distance_scale="none",
        reweight_eps="zero",
        interpolation="exact",
        reweight_neighbours="with_self",
        blur="gaussian",
    ),
}


@dataclass(frozen=True)
class Lambdas:
    """Factors of the banks' image scores and maps before the one-class SVMs."""

    score: dict[str, float] = field(default_factory=lambda: {"xyz": 1.0, "rgb": 0.1, "fusion": 1.0})
    map: dict[str, float] = field(default_factory=lambda: {"xyz": 1.0, "rgb": 0.1, "fusion": 1.0})


@dataclass(frozen=True)
class Settings:
    """What a method's numbers depend on besides the data and the weights."""

    method_name: str = "DINO+Point_MAE+Fusion"
    rgb_backbone_name: str = "vit_base_patch8_224_dino"
    xyz_backbone_name: str = "Point_MAE"
    protocol: str = "ours"
    quirks: Quirks = field(default_factory=Quirks)
    img_size: int = 224
    num_group: int = 1024
    group_size: int = 128
    max_sample: int = 400
    f_coreset: float = 0.1
    coreset_eps: float = 0.9
    random_state: int | None = None
    asy_memory_bank: int | None = None
    rm_zero_for_project: bool = False
    ocsvm_nu: float = 0.5
    ocsvm_maxiter: int = 1000
    lambdas: Lambdas = field(default_factory=Lambdas)
    feature_dtype: Literal["float32", "float16"] | None = None
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = 0

    @property
    def method(self) -> MethodSpec:
        """The method's row, with the quirks of the protocol applied to it."""
        return apply_quirks(METHODS[self.method_name], self.quirks)

    @property
    def xyz_dim(self) -> int:
        """Dims of an xyz patch."""
        return XYZ_DIMS[self.xyz_backbone_name]

    @property
    def xyz_side(self) -> int:
        """Patches a side of the xyz grid."""
        return self.img_size // self.method.xyz_stride

    @property
    def rgb_side(self) -> int:
        """Patches a side of the rgb grid."""
        return self.img_size // RGB_STRIDE

    @property
    def sample_limit(self) -> int:
        """How many training samples are used at most."""
        return self.max_sample + (self.quirks.sample_limit == "one_more")


def apply_quirks(spec: MethodSpec, quirks: Quirks) -> MethodSpec:
    """The method as the quirks want it."""
    changes: dict[str, object] = {}
    if quirks.standardize == "own":
        changes["standardize"] = "own"
    if quirks.distance_scale == "none":
        changes["distance_scale"] = 1.0
    if quirks.reweight_eps == "zero":
        changes["reweight_eps"] = 0.0
    if quirks.zero_rows == "keep":
        changes["zero_row"] = False
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
