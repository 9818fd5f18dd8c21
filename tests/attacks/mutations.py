"""Damage to files: bytes flipped, cut, inserted and spliced, numbers replaced, also inside of containers."""

from __future__ import annotations

import copy
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Mutation = Callable[[bytes, Sequence[bytes], np.random.Generator], bytes]  # content, all seeds, rng

MOST_OPERATIONS = 4  # on one mutant
LONGEST = 40  # bytes that are removed, inserted or repeated at once
HEADER = 200  # bytes; half of all places are in here
PNG_SIGNATURE_BYTES = 8
DIGITS = re.compile(rb"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
ODD_NUMBERS = (
    b"0",
    b"-1",
    b"",
    b"nan",
    b"-inf",
    b"1e999",
    b"1.5",
    b"65536",
    b"4294967296",
    b"9" * 19,
    b"9" * 5000,
)
ODD_INTEGERS = (
    0,
    1,
    2**7,
    2**8 - 1,
    2**15 - 1,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
DEEP = "__deep__"  # stands for lists in lists, which no encoder writes
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**12, 10**400, float("nan"), float("-inf")),
    *(
        "",
        "x",
        "../../x",
        "a\nb",
        "\0",
        "\ud800",
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"a": {}},
        DEEP,
    ),
)


def damaged(content: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """A few of the operations below, one after the other."""
    data = bytearray(content)
    for _ in range(1 if rng.random() < 0.5 else rng.integers(2, MOST_OPERATIONS + 1)):
        OPERATIONS[rng.integers(len(OPERATIONS))](data, seeds, rng)
    return bytes(data)


def _flip(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _overwrite(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    start, length = _place(data, rng), int(rng.integers(1, LONGEST))
    data[start : start + length] = rng.bytes(length)


def _remove(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    start = _place(data, rng)
    del data[start : start + int(rng.integers(1, LONGEST))]


def _insert(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    start = _place(data, rng)
    data[start:start] = rng.bytes(int(rng.integers(1, LONGEST)))


def _repeat(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    start = _place(data, rng)
    data[start:start] = data[start : start + int(rng.integers(1, LONGEST))]


def _cut(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    del data[_place(data, rng) :]


def _splice(data: bytearray, seeds: Sequence[bytes], rng: np.random.Generator) -> None:
    """The end becomes that of another seed, from anywhere."""
    other = seeds[int(rng.integers(len(seeds)))]
    data[_place(data, rng) :] = other[int(rng.integers(len(other) + 1)) :]


def _integer(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    """A length, count or offset of 1 to 8 bytes, of either byte order."""
    width, order = int(2 ** rng.integers(4)), ("little", "big")[rng.integers(2)]
    value = (*ODD_INTEGERS, len(data), len(data) - 1)[rng.integers(len(ODD_INTEGERS) + 2)]
    start = _place(data, rng) // width * width if rng.random() < 0.5 else _place(data, rng)
    data[start : start + width] = (value % 256**width).to_bytes(width, order)


def _digits(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> None:
    """A number that stands there as text."""
    found = list(DIGITS.finditer(data[: 20 * HEADER]))
    if found:
        chosen = found[int(rng.integers(len(found)))]
        data[slice(*chosen.span())] = ODD_NUMBERS[int(rng.integers(len(ODD_NUMBERS)))]


OPERATIONS = (_flip, _overwrite, _remove, _insert, _repeat, _cut, _splice, _integer, _integer, _digits)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    end = min(HEADER, len(data)) if rng.random() < 0.5 else len(data)
    return int(rng.integers(max(1, end)))


def damaged_png(content: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Damaged, with the checksums of its chunks made right again, so that decoders look at what is inside."""
    data = bytearray(damaged(content, seeds, rng))
    start = PNG_SIGNATURE_BYTES
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(data)


def damaged_member(content: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """A zip archive of which one member is damaged, removed or misnamed; checksums and table are right."""
    archives = [_members(seed) for seed in seeds]
    members = _members(content)
    name = list(members)[int(rng.integers(len(members)))]
    others = [archive[name] for archive in archives if name in archive]
    taken, chance = members.pop(name), rng.random()
    if chance < 0.1:
        members[f"{name}x"] = taken
    elif chance < 0.9:
        members[name] = damaged(taken, others, rng)
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
    ) as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return packed.getvalue()


def tampered_json(content: bytes, _: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Valid JSON (but for numbers such as NaN) of another form; of JSON lines one line."""
    lines = content.splitlines() if content.count(b"}\n{") else [content]
    i = int(rng.integers(len(lines)))
    lines[i] = as_json(tampered(json.loads(lines[i]), rng))
    return b"\n".join(lines) + b"\n"


def as_json(value: Any) -> bytes:
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000).encode()


def tampered(value: Any, rng: np.random.Generator) -> Any:
    """A copy in which an entry or two, at any depth, are replaced, removed, misnamed or added."""
    value = [copy.deepcopy(value)]
    for _ in range(rng.integers(1, 3)):
        _tamper(value, rng)
    return value[0] if value else None


def _tamper(content: Any, rng: np.random.Generator) -> None:
    children = list(content) if isinstance(content, dict) else list(range(len(content)))
    if not children:
        return
    key = children[int(rng.integers(len(children)))]
    odd, chance = copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]), rng.random()
    if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.85:
        _tamper(content[key], rng)
    elif chance < 0.7:
        content[key] = odd
    elif chance < 0.85 and isinstance(content, dict):
        content[f"{odd}"[:40]] = content.pop(key)
    elif chance < 0.95:
        del content[key]
    elif isinstance(content, dict):
        content["added"] = odd
    else:
        content.append(odd)


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
