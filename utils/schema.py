"""Checking what JSON from elsewhere holds against type hints: the one schema for files of others."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


def matches(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is what a type hint says.

    Known are None, bool, int, float (an int is one too), str, Any, Literal, unions, list[X] and dict[str, X].
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(matches(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is list:
        return isinstance(value, list) and all(matches(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and matches(item, parts[1]) for key, item in value.items()
        )
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (type(None) if hint is None else hint)


def check_fields(
    values: Any, hints: Mapping[str, Any], optional: frozenset[str] = frozenset(), closed: bool = True
) -> None:
    """Raises ValueError naming the first field that is missing, of another type than its hint, or unknown if closed."""
    if not isinstance(values, dict):
        raise ValueError(f"is a {type(values).__name__}, not an object with named fields")
    for name in (*hints, *values) if closed else hints:
        if name not in hints:
            raise ValueError(
                f"has a field {name!r:.60} that is not known; a newer version may have written it"
            )
        if name not in values and name not in optional:
            raise ValueError(f"has no field {name!r}")
        if name in values and not matches(values[name], hints[name]):
            raise ValueError(f"{name} is {values[name]!r:.60}, which it can't be")
