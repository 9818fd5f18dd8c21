"""The pretended GPU raises where a real one would; otherwise tests under it would prove nothing."""

import pytest
import torch
from torch import nn

from tests.pretend_cuda import pretend_cuda


@pytest.fixture(autouse=True)
def _pretence():
    with pretend_cuda():
        yield


def test_results_are_where_their_operands_are():
    there = torch.arange(6.0).cuda()
    assert [
        t.is_cuda for t in (there + 1, there[2:], there.view(2, 3).sum(0), torch.topk(there, 2).indices)
    ] == [True] * 4
    assert torch.zeros_like(there).device == torch.zeros(3, device="cuda").device == torch.device("cuda", 0)
    assert there.new_ones(2).is_cuda
    assert all(row.is_cuda for row in there.view(2, 3))
    assert all(part.is_cuda for part in there.split(2))
    assert not there.cpu().is_cuda
    assert not torch.arange(3).is_cuda


def test_a_module_moves_with_its_parameters_and_buffers():
    layer = nn.BatchNorm1d(4).to("cuda")
    assert all(tensor.is_cuda for tensor in (*layer.parameters(), layer.running_mean))
    assert layer(torch.randn(5, 4, device="cuda")).is_cuda
    with pytest.raises(RuntimeError, match="same device"):
        layer(torch.randn(5, 4))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: here @ there,
        lambda here, there: here[there.long()],
        lambda here, there: there.__setitem__(slice(None), here),
        lambda here, there: torch.stack([there]).index_add(0, torch.zeros(1, dtype=torch.int64), here[None]),
    ],
)
def test_operands_on_both_sides_are_an_error(mixed):
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(3), torch.ones(3).cuda())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_type_asked_for(dtype):
    there = torch.randn(4, 4).cuda()
    with torch.autocast("cuda", dtype=dtype):
        product = there @ there
    assert product.is_cuda
    assert product.dtype == dtype
    assert (there @ there).dtype == torch.float32


def test_numpy_sees_nothing_on_the_gpu():
    with pytest.raises(TypeError, match="copy it to host memory"):
        torch.ones(3).cuda().numpy()
    assert torch.ones(3).cuda().cpu().numpy().sum() == 3


def test_numbers_and_indices_of_the_host_are_welcome():
    there = torch.arange(6.0).cuda()
    assert (there + torch.tensor(1.0)).is_cuda
    assert there[torch.tensor([1, 2])].is_cuda
    there[torch.tensor([1, 2])] = torch.tensor(5.0)
    there[:2].copy_(torch.zeros(2))
    assert there.tolist() == [0, 0, 5, 3, 4, 5]
