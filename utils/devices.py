"""Choosing the device."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The device of `--device`: "auto" takes the first GPU if there is one.

    Turns TF32 off: distances need all the bits of float32. Raises ValueError for a device that is not there.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: use auto, cpu, cuda or cuda:I") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: use auto, cpu, cuda or cuda:I")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
