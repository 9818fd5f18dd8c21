"""The loss in row blocks is the plain loss."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.uff import loss as uff_loss
from models.uff.loss import contrastive_loss
from tests.reference.uff import plain_contrastive_loss


def _unit_rows(count, dim, seed, dtype=torch.float32):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(rows, dim=1).requires_grad_()


def _gradients(loss, *inputs):
    return torch.autograd.grad(3 * loss, inputs)


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("block", [1, 7 * 90, 10**6])
def test_value_and_gradients_are_those_of_the_plain_loss(monkeypatch, block, scale):
    monkeypatch.setitem(uff_loss.BLOCK_LOGITS, "cpu", block)
    queries, keys = (scale * _unit_rows(40, 16, 0)).detach().requires_grad_(), _unit_rows(90, 16, 1)
    index = torch.randint(40, (90,), generator=torch.Generator().manual_seed(2))
    ours = contrastive_loss(queries, keys, index)
    plain = plain_contrastive_loss(queries[index], keys)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    for a, b in zip(_gradients(ours, queries, keys), _gradients(plain, queries, keys), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7 * scale)


def test_gradients_agree_with_differences():
    queries, keys = _unit_rows(5, 4, 0, torch.float64), _unit_rows(6, 4, 1, torch.float64)
    index = torch.tensor([0, 1, 2, 3, 4, 4])
    assert torch.autograd.gradcheck(lambda q, k: contrastive_loss(q, k, index), (queries, keys))


def test_parts_of_several_processes_sum_to_the_loss():
    queries, keys = _unit_rows(10, 8, 0), _unit_rows(30, 8, 1)
    index = torch.arange(30) // 3
    whole = contrastive_loss(queries, keys, index)
    parts = [
        contrastive_loss(queries[:4], keys, index[:12]),
        contrastive_loss(queries[4:], keys, index[12:] - 4, first_key=12),
    ]
    torch.testing.assert_close(sum(parts), whole)
    for a, b in zip(_gradients(sum(parts), queries, keys), _gradients(whole, queries, keys), strict=True):
        torch.testing.assert_close(a, b)


def test_without_pairs_the_loss_is_zero():
    queries, keys = _unit_rows(0, 8, 0), _unit_rows(0, 8, 1)
    loss = contrastive_loss(queries, keys, torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0
    assert _gradients(loss, queries)[0].shape == (0, 8)


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_memory_is_linear_in_the_number_of_pairs(monkeypatch):
    monkeypatch.setitem(uff_loss.BLOCK_LOGITS, "cpu", 2**14)
    queries, keys = _unit_rows(1024, 4, 0), _unit_rows(1024, 4, 1)
    with _LargestTensor() as largest:
        contrastive_loss(queries, keys, torch.arange(1024)).backward()
    assert largest.numbers <= 2**14
