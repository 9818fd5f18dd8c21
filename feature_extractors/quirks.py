"""Where the released code, its paper and we may differ: one field each, three presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from feature_extractors.methods import BankSpec, MethodSpec

FEATURES_ARE_DRAWN = (  # why Quirks.draws_features and --features exclude each other
    "--features: with --quirk drop_path=live (--protocol released) features are drawn anew in each run; drop one of "
    "the two"
)


@dataclass(frozen=True)
class Quirks:
    """The first value of each is ours; docs/quirks.md tells what each changes, and by how much."""

    # which rgb patch is saved beside an xyz row for UFF training: the one above it, or the release's mix-up
    uff_pairing: Literal["colocated", "scrambled"] = "colocated"
    # whose statistics the group encoder's BatchNorm uses; the release never calls eval()
    batchnorm: Literal["cloud", "running"] = "cloud"
    # whether DropPath is live while extracting, as in the release, whose features are random
    drop_path: Literal["off", "live"] = "off"
    # mean of xyz and std of rgb for all banks of a method with several (single banks: as its row says), or own
    standardize: Literal["shared_mean", "own"] = "shared_mean"
    # what later banks' coresets are a share of: the rows left in the first bank, or their own
    coreset_size: Literal["of_first_bank", "each"] = "of_first_bank"
    # arithmetic of the greedy k-center
    coreset_dtype: Literal["float16", "float32"] = "float16"
    # whether xyz rows that hold an exact 0 give way to one row of zeros (three banks)
    zero_rows: Literal["one_row", "keep"] = "one_row"
    # whether DINO+Point_MAE divides the distances of its image score by 1000
    distance_scale: Literal["thousandth", "none"] = "thousandth"
    # whether DINO and Point_MAE add 1e-5 in the denominator of the image score's weight
    reweight_eps: Literal["small", "zero"] = "small"
    # squared distances of the 3-NN interpolation: a^2 + b^2 - 2ab in float32, which cancels, or differences
    interpolation: Literal["cancelling", "exact"] = "cancelling"
    # whether the image score's weight leaves m* itself out, or counts it as PatchCore does
    reweight_neighbours: Literal["without_self", "with_self"] = "without_self"
    # PIL's blur of 8-bit levels relative to the map's maximum, or a float Gaussian
    blur: Literal["pil_8bit", "gaussian"] = "pil_8bit"
    # whether one sample more than --max_sample is used
    sample_limit: Literal["max_sample", "one_more"] = "max_sample"

    @property
    def draws_features(self) -> bool:
        """Whether features are drawn at random, sample after sample: no class may be split, no kept feature used."""
        return self.drop_path == "live"

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

    def applied_to(self, spec: MethodSpec) -> MethodSpec:
        """The method as these quirks want it."""
        return dataclasses.replace(
            spec,
            banks=tuple(self._bank(bank) for bank in spec.banks),
            reweight_eps=spec.reweight_eps if self.reweight_eps == "small" else 0.0,
            distance_scale=spec.distance_scale if self.distance_scale == "thousandth" else 1.0,
        )

    def _bank(self, bank: BankSpec) -> BankSpec:
        return dataclasses.replace(
            bank,
            standardize="own" if self.standardize == "own" else bank.standardize,
            zero_row=bank.zero_row and self.zero_rows == "one_row",
        )


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
