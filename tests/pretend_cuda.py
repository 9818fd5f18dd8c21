"""A GPU that is not there: tensors that say they are on it, and errors where a real one would give errors.

Under `pretend_cuda()` everything is computed on the CPU, but `.to("cuda")`, `device="cuda"` and the like mark
their results, `.device` tells the mark, operations pass it on, and these raise, as with a real GPU: operations on
tensors of both sides (numbers and indices excepted), and NumPy's view of a marked tensor. Autocast for CUDA becomes
the CPU's, which computes in the type asked for. So the paths for the GPU run in tests on any machine, and a tensor
left on the wrong side is found. What only a GPU's kernels do, it can't show: these tests are marked `pretend_gpu`,
those on a GPU `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakIdKeyDictionary

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
Tensor = torch.Tensor
INDEXING = {Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put, Tensor.index_put_}
BETWEEN_SIDES = {Tensor.copy_, Tensor.data.__set__, torch._has_compatible_shallow_copy_type}
READS_DEVICES = {torch.device, torch._C._nn._parse_to}
SEES_MEMORY = {Tensor.numpy, Tensor.__array__}


class _PretendCuda(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.marked = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in READS_DEVICES:
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return CUDA if self._is_marked(args[0]) else CPU
        if func == Tensor.is_cuda.__get__:
            return self._is_marked(args[0])
        if func in SEES_MEMORY and self._is_marked(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy; copy it to host memory first")
        marked = self._result_is_marked(func, args, kwargs)
        if func == Tensor.data.__set__:
            self._mark(args[0], self._is_marked(args[1]))
        moved_args, moved_kwargs = tree_map(_on_the_cpu, (args, kwargs))
        result = _call(func, moved_args, moved_kwargs)
        if (
            any(result is value for value in args)
            and isinstance(result, Tensor)
            and marked != self._is_marked(result)
        ):
            result = result.clone()  # moved to the other side, where it is another tensor
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._mark(tensor, marked)
        return result

    def _result_is_marked(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Where a function's result is. Raises RuntimeError where its tensors are on both sides."""
        if func is Tensor.cpu:
            return False
        if func is Tensor.cuda:
            return True
        device = _named_device(func, args, kwargs)
        if device is not None:
            return device.type == "cuda"
        if func is Tensor.to:  # another tensor's device, or its own
            return self._is_marked(args[1] if isinstance(args[1], Tensor) else args[0])
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        marks = {self._is_marked(t) for t in tensors if t.dim() > 0}
        if len(marks) == 2 and not self._is_allowed(func, args):
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, found cuda:0 and cpu")
        if func in INDEXING or func is Tensor.copy_:
            return self._is_marked(args[0])
        return any(self._is_marked(t) for t in tensors)

    def _is_allowed(self, func: Callable, args: tuple) -> bool:
        """Copies between the sides, and indices from the host into a tensor on the GPU."""
        if func in BETWEEN_SIDES:
            return True
        if func is Tensor.__setitem__:
            return self._is_marked(args[0]) and (args[2].dim() == 0 or self._is_marked(args[2]))
        return func in INDEXING and self._is_marked(args[0])

    def _is_marked(self, tensor: Tensor) -> bool:
        return tensor in self.marked

    def _mark(self, tensor: Tensor, marked: bool) -> None:
        if marked:
            self.marked[tensor] = True
        else:
            self.marked.pop(tensor, None)


class _HostGenerator(torch.Generator):
    def __new__(cls, device: Any = None) -> _HostGenerator:
        return super().__new__(cls)


class _HostAutocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_on_the_cpu(device_type), *args, **kwargs)


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """A GPU for what runs within, in this thread."""
    with (
        mock.patch("torch.Generator", _HostGenerator),
        mock.patch("torch.autocast", _HostAutocast),
        mock.patch("torch.cuda.device_count", return_value=1),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda.synchronize"),
        mock.patch("torch.cuda.device", nullcontext),
        mock.patch("torch.cuda.reset_peak_memory_stats"),
        mock.patch("torch.cuda.max_memory_allocated", return_value=10**6),
        _PretendCuda(),
    ):
        yield


def _named_device(func: Callable, args: tuple, kwargs: dict[str, Any]) -> torch.device | None:
    named = [value for value in kwargs.values() if isinstance(value, torch.device)]
    if isinstance(kwargs.get("device"), str):
        named.append(torch.device(kwargs["device"]))
    if func is Tensor.to:
        named += [value for value in args[1:] if isinstance(value, torch.device)]
        named += [torch.device(value) for value in args[1:] if isinstance(value, str)]
    return named[0] if named else None


def _on_the_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


def _call(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    if func is Tensor.cuda:
        return args[0]
    result = func(*args, **kwargs)
    return list(result) if func is Tensor.__iter__ else result
