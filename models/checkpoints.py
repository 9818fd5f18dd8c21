"""Reading the original downloads: files from the internet, so read as data and checked key by key.

Every problem is one CheckpointError that names the file, the key and the remedy.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.downloads import CheckpointError

SHOWN_KEYS = 3  # how many bad keys an error names


def read_torch_file(path: Path, remedy: str) -> Any:
    """Content of a torch file, on the CPU, without running any code that it may hold."""
    _require(path, remedy)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable torch file ({_reason(error)}); {remedy}") from error


def read_numpy_shapes(path: Path, remedy: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in an .npz file."""
    _require(path, remedy)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name].shape for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a readable .npz file; {remedy}") from error


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
    not_tensors = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if not_tensors:
        raise CheckpointError(f"{path}: no tensor under {_some(not_tensors)}; {remedy}")
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    check_shapes({key: tuple(value.shape) for key, value in state.items()}, expected, path, remedy)
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} unknown keys: {_some(unknown)}; {remedy}")
    ruined = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if ruined:
        raise CheckpointError(f"{path}: NaN or infinite numbers under {_some(ruined)}; {remedy}")
    module.load_state_dict(dict(state))


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's text offers to run the file's code
        return "it is damaged, or holds code"
    if isinstance(error, KeyError):  # a byte that is no instruction
        return "it is of another kind"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _require(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {remedy}")


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN_KEYS]) + (" ..." if len(texts) > SHOWN_KEYS else "")
