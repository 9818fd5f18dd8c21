"""The classes of the two public data sets, in the order of their tables."""

from __future__ import annotations

MVTEC3D_CLASSES = tuple("bagel cable_gland carrot cookie dowel foam peach potato rope tire".split())
EYECANDIES_CLASSES = (
    "CandyCane",
    "ChocolateCookie",
    "ChocolatePraline",
    "Confetto",
    "GummyBear",
    "HazelnutTruffle",
    "LicoriceSandwich",
    "Lollipop",
    "Marshmallow",
    "PeppermintCandy",
)
