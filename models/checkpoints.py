"""Reading the original downloads: files from the internet, so read as data and checked key by key.

Every problem is one CheckpointError that names the file, the key and the remedy.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from models.downloads import CheckpointError

SHOWN_KEYS = 3  # how many bad keys an error names
SHOWN_LETTERS = 120  # of a key, or of a decoder's words, which may hold anything
PLAIN_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class ArrayHeader(NamedTuple):
    """What an array in a file claims to be."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_torch_file(path: Path, remedy: str) -> Any:
    """Content of a torch file, on the CPU, without running any code that it may hold."""
    with (
        decoded(path, "torch file", remedy),
        warnings.catch_warnings(),
        torch.serialization.safe_globals([argparse.Namespace]),
    ):
        warnings.simplefilter("ignore")  # about what torch finds odd: it loads, or is an error
        return torch.load(path, map_location="cpu", weights_only=True)


def read_numpy_shapes(path: Path, remedy: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in an .npz file."""
    return {name: header.shape for name, header in read_numpy_headers(path, remedy).items()}


def read_numpy_headers(path: Path, remedy: str) -> dict[str, ArrayHeader]:
    """What the arrays of an .npz file claim to be, by name; none is loaded, so that their size may be judged first."""
    with decoded(path, ".npz file", remedy), zipfile.ZipFile(path) as archive:
        return {
            name.removesuffix(".npy"): _array_header(archive, name)
            for name in archive.namelist()
            if name.endswith(".npy")
        }


@contextmanager
def decoded(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Makes one CheckpointError of a file that is missing and of whatever a decoder raises in the block.

    Damaged files raise nearly everything there is; a length in them may also ask for any amount of memory.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {remedy}")
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable {kind} ({_reason(error)}); {remedy}") from error


def _array_header(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # later ones are for headers above 64 KiB, which no plain array needs
            raise ValueError(f"{name} has an array header of version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if min(shape, default=0) < 0 or dtype.hasobject:
            raise ValueError(f"{name} claims an array {shape} of {dtype}")
        return ArrayHeader(shape, dtype)


def entry(content: Any, key: str, path: Path, remedy: str, kind: type = object) -> Any:
    """`content[key]` of a nested checkpoint, which is to be of this kind."""
    if not isinstance(content, Mapping) or key not in content:
        raise CheckpointError(f"{path}: has no entry '{key}'; {remedy}")
    if not isinstance(content[key], kind):
        raise CheckpointError(f"{path}: its entry '{key}' is a {type(content[key]).__name__}; {remedy}")
    return content[key]


def subset(state: Mapping[str, Any], prefix: str, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entries under `prefix`, with it and a leading "module." removed, but for those in `ignore`."""
    plain = {str(key).removeprefix("module."): value for key, value in state.items()}
    inner = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    return {key: value for key, value in inner.items() if not key.startswith(ignore)} if ignore else inner


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: Path, remedy: str
) -> None:
    """Raise CheckpointError unless every expected key is there with its shape."""
    missing = [key for key in expected if key not in found]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} keys are missing: {_some(missing)}; {remedy}")
    wrong = [
        f"{key} has shape {tuple(found[key])}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if tuple(found[key]) != tuple(shape)
    ]
    if wrong:
        raise CheckpointError(f"{path}: {_some(wrong)}; {remedy}")


def load_complete(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path, remedy: str) -> None:
    """Load `state` into `module`: each of the module's keys, no other, and finite numbers only."""
    not_tensors = [key for key, value in state.items() if not is_plain_tensor(value)]
    if not_tensors:
        raise CheckpointError(f"{path}: no tensor under {_some(not_tensors)}; {remedy}")
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    check_shapes({key: tuple(value.shape) for key, value in state.items()}, expected, path, remedy)
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} unknown keys: {_some(unknown)}; {remedy}")
    stored = module.state_dict()
    integers = [
        key for key, value in state.items() if value.is_floating_point() != stored[key].is_floating_point()
    ]
    if integers:
        first = state[integers[0]].dtype
        raise CheckpointError(f"{path}: numbers of another kind ({first}) under {_some(integers)}; {remedy}")
    ruined = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if ruined:
        raise CheckpointError(f"{path}: NaN or infinite numbers under {_some(ruined)}; {remedy}")
    module.load_state_dict(dict(state))


def is_plain_tensor(value: Any) -> bool:
    """Whether this is a dense tensor of plain numbers in memory; files may hold tensors of many other kinds."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in PLAIN_DTYPES
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
    )


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's text offers to run the file's code
        return "it is damaged, or holds code"
    if isinstance(error, KeyError):  # a byte that is no instruction
        return "it is of another kind"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return str(error).splitlines()[0][:SHOWN_LETTERS] if str(error) else type(error).__name__


def _some(keys: Sequence[object]) -> str:
    """The first keys, on one line whatever they hold."""
    texts = [" ".join(str(key).split())[:SHOWN_LETTERS] for key in keys[:SHOWN_KEYS]]
    return ", ".join(texts) + (" ..." if len(keys) > SHOWN_KEYS else "")
