"""All numbers that a method's scores depend on besides the data and the weights, in one frozen object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from feature_extractors.methods import MADE_OF, METHODS, MethodSpec
from feature_extractors.quirks import Quirks
from models.backbones import RGB_BACKBONES, XYZ_BACKBONES, RgbBackbone, XyzBackbone, XyzOptions
from utils.schema import check_fields
from utils.structures import Modality

DEFAULT_XYZ_BACKBONE = "Point_MAE"
FeatureDtype = Literal["float32", "float16"]
LAMBDAS = tuple(f"{source}_{kind}_lambda" for source in MADE_OF for kind in ("s", "smap"))


@dataclass(frozen=True)
class Settings:
    """What a run is; fields are named as main.py's flags, whose help says what they do.

    Raises ValueError naming the flag for values that are out of range or do not go together. `method` is the
    row of METHODS with the quirks and the lambdas applied to it, made once, at construction.
    """

    method_name: str = "DINO+Point_MAE+Fusion"
    rgb_backbone_name: str = "vit_base_patch8_224_dino"
    xyz_backbone_name: str = ""  # as the method says
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
    xyz_s_lambda: float | None = None  # None: the factor in the method's row
    xyz_smap_lambda: float | None = None
    rgb_s_lambda: float | None = None
    rgb_smap_lambda: float | None = None
    fusion_s_lambda: float | None = None
    fusion_smap_lambda: float | None = None
    feature_dtype: FeatureDtype | None = None  # None: as the backbones give them
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = 0
    method: MethodSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_choice("--method_name", self.method_name, METHODS)
        row = METHODS[self.method_name]
        if not self.xyz_backbone_name:
            object.__setattr__(self, "xyz_backbone_name", row.xyz_backbone or DEFAULT_XYZ_BACKBONE)
        _check_choice("--rgb_backbone_name", self.rgb_backbone_name, RGB_BACKBONES)
        _check_choice("--xyz_backbone_name", self.xyz_backbone_name, XYZ_BACKBONES)
        object.__setattr__(self, "method", self._with_lambdas(self.quirks.applied_to(row)))
        problem = next((text for holds, text in _problems(self) if holds), None)
        if problem:
            raise ValueError(problem)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The settings that `as_dict` gave. Raises ValueError naming the field that is not known or of another type."""
        hints = {name: hint for name, hint in get_type_hints(cls).items() if name != "method"}
        check_fields(values, {**hints, "quirks": dict[str, str]})
        return cls(**{**values, "quirks": Quirks().replace(values["quirks"])})

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON."""
        names = [item.name for item in dataclasses.fields(self) if item.init and item.name != "quirks"]
        return {**{name: getattr(self, name) for name in names}, "quirks": dataclasses.asdict(self.quirks)}

    @property
    def rgb_backbone(self) -> RgbBackbone:
        return RGB_BACKBONES[self.rgb_backbone_name]

    @property
    def xyz_backbone(self) -> XyzBackbone:
        return XYZ_BACKBONES[self.xyz_backbone_name]

    @property
    def rgb_side(self) -> int:
        """Patches a side of the rgb grid."""
        return self.img_size // self.rgb_backbone.stride

    @property
    def xyz_side(self) -> int:
        """Patches a side of the xyz grid."""
        return self.img_size // self.xyz_backbone.stride

    def dim(self, source: Modality) -> int:
        """Dims of a patch of that kind; a fused one holds those it is made of."""
        own = {"rgb": self.rgb_backbone.dim, "xyz": self.xyz_backbone.dim}
        return sum(own[part] for part in MADE_OF[source])

    @property
    def xyz_options(self) -> XyzOptions:
        """What the xyz backbone needs to know."""
        return XyzOptions(
            image_size=self.img_size,
            num_group=self.num_group,
            group_size=self.group_size,
            batchnorm=self.quirks.batchnorm,
            drop_path=self.quirks.draws_features,
            interpolation=self.quirks.interpolation,
        )

    @property
    def sample_limit(self) -> int:
        """How many training samples are used at most."""
        return self.max_sample + (self.quirks.sample_limit == "one_more")

    def _with_lambdas(self, row: MethodSpec) -> MethodSpec:
        banks = []
        for bank in row.banks:
            score, pixel = (
                getattr(self, f"{bank.source}_s_lambda"),
                getattr(self, f"{bank.source}_smap_lambda"),
            )
            banks.append(
                dataclasses.replace(
                    bank,
                    score_factor=bank.score_factor if score is None else score,
                    map_factor=bank.map_factor if pixel is None else pixel,
                )
            )
        return dataclasses.replace(row, banks=tuple(banks))


def _problems(s: Settings) -> list[tuple[bool, str]]:
    """What may be wrong with settings, and what to type instead."""
    row, grid = s.method, _grid_step(s)
    positive = ("img_size", "num_group", "group_size", "max_sample", "ocsvm_maxiter")
    return [
        *((getattr(s, name) < 1, f"--{name} {getattr(s, name)} must be at least 1") for name in positive),
        (
            row.xyz_backbone not in (None, s.xyz_backbone_name),
            f"--method_name {s.method_name} has no other backbone than {row.xyz_backbone}; drop "
            f"--xyz_backbone_name {s.xyz_backbone_name}, or use --method_name Point_MAE",
        ),
        (
            s.img_size % grid != 0,
            f"--img_size {s.img_size} is no multiple of {grid}, the side of the backbones' patches; use 224",
        ),
        (
            "fusion" in row.sources and s.xyz_side % s.rgb_side != 0,
            f"--xyz_backbone_name {s.xyz_backbone_name} has a grid of side {s.xyz_side}, no multiple of the "
            f"{s.rgb_side} of --rgb_backbone_name {s.rgb_backbone_name}: their patches can't be fused",
        ),
        *(
            (not math.isfinite(value), f"--{name} {value} must be a finite number")
            for name in LAMBDAS
            if (value := getattr(s, name)) is not None
        ),
        (
            not 0 < s.f_coreset <= 1,
            f"--f_coreset {s.f_coreset} must be a share above 0, 1 at most; the release uses 0.1",
        ),
        (
            not 0 < s.coreset_eps < 1,
            f"--coreset_eps {s.coreset_eps} must lie between 0 and 1, both excluded; the release uses 0.9",
        ),
        (
            not 0 < s.ocsvm_nu <= 1,
            f"--ocsvm_nu {s.ocsvm_nu} must be above 0, 1 at most; the release uses 0.5",
        ),
        (
            s.rm_zero_for_project and row.sources != ("xyz",),
            "--rm_zero_for_project works on a single xyz bank; use --method_name Point_MAE",
        ),
        (
            s.asy_memory_bank is not None and not any(bank.limited for bank in row.banks),
            f"--asy_memory_bank limits no bank of --method_name {s.method_name}; "
            "use --method_name DINO+Point_MAE+Fusion",
        ),
        (
            s.asy_memory_bank is not None and s.asy_memory_bank < 1,
            f"--asy_memory_bank {s.asy_memory_bank} must be at least 1",
        ),
    ]


def _grid_step(s: Settings) -> int:
    """What the image side must be a multiple of."""
    strides = {"rgb": s.rgb_backbone.stride, "xyz": s.xyz_backbone.stride}
    return max([strides[part] for part in s.method.backbones if part in strides] + [8])


def _check_choice(flag: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in choices:
        raise ValueError(f"{flag} {value}: choose one of {', '.join(choices)}")
