import pytest
import torch

from feature_extractors.memory_bank.training_patches import PatchCollector
from utils.structures import Patches


def _sample(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(rows, (16,), generator=generator)
    return Patches(torch.randn(rows, 5, generator=generator), index, side=4)


@pytest.mark.parametrize("expected", [1, 4, 50])
@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [1, 16, 2, 9], [16, 1, 1, 1]])
def test_samples_come_back_as_they_were_added(counts, expected):
    samples = [_sample(count, seed) for seed, count in enumerate(counts)]
    collector = PatchCollector(expected)
    for sample in samples:
        collector.add(sample)
    joined = collector.joined()
    assert len(joined.rows) == sum(counts)
    for found, sample in zip(joined, samples, strict=True):
        assert torch.equal(found.rows, sample.rows)
        assert torch.equal(found.row_of_patch, sample.row_of_patch)


def test_rows_are_held_in_the_dtype_asked_for():
    collector = PatchCollector(2, torch.float16)
    collector.add(_sample(4, 0))
    joined = collector.joined()
    assert joined.rows.dtype == torch.float16
    assert torch.equal(joined.rows, _sample(4, 0).rows.half())
