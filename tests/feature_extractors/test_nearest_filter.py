import pytest
import torch

from feature_extractors.memory_bank import nearest
from feature_extractors.memory_bank.nearest import BankIndex, nearest_rows, neighbours
from feature_extractors.memory_bank.nearest_filter import DIRECTIONS, MIN_ROWS, make_filter
from tests.reference.nearest import exact_nearest

DIM = 3 * DIRECTIONS


def _part_like(size, seed, hidden_dims=40, offset=3.0):
    """Rows on few dimensions, with noise, as patches of a part are."""
    basis = torch.randn(hidden_dims, DIM, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, hidden_dims, generator=generator)
    return hidden @ basis + 0.1 * torch.randn(size, DIM, generator=generator) + offset


def _filter(bank):
    return make_filter(bank, bank.float().mean(0))


@pytest.mark.parametrize("distances_at_once", [20_000, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_filter_changes_nothing_and_spares_nearly_all_products(monkeypatch, dtype, distances_at_once):
    query, bank = _part_like(100, 1).to(dtype), _part_like(2 * MIN_ROWS, 2).to(dtype)
    expected = exact_nearest(query, bank)
    monkeypatch.setattr(nearest, "possible_nearest", None)  # calling it would be an error
    distance, index = nearest_rows(query, BankIndex.of(bank), distances_at_once=distances_at_once)
    assert torch.equal(index, expected[1])
    torch.testing.assert_close(distance, expected[0], rtol=2e-7, atol=0)


def test_bounds_are_below_the_distances_and_not_far():
    query, bank = _part_like(50, 1), _part_like(MIN_ROWS, 2)
    found = _filter(bank)
    shifted, shift = found.squared_distances(found.bounded(query), slice(None))
    distance = torch.cdist(query.double(), bank.double()).square()
    assert (shifted - shift[:, None] <= distance).all()
    assert ((shifted - shift[:, None]) / distance).median() > 0.9


def test_ties_go_to_the_lowest_index_and_rows_lie_at_distance_0_from_themselves():
    bank = _part_like(MIN_ROWS, 1).repeat(3, 1)
    distance, index = nearest_rows(bank[:200], BankIndex.of(bank), distances_at_once=200 * 500)
    assert torch.equal(index, torch.arange(200))
    assert not distance.any()


def test_neighbours_of_a_bank_row_are_those_of_float64():
    bank = BankIndex.of(_part_like(MIN_ROWS, 1).repeat(2, 1))
    assert bank.filter is not None
    squares = torch.cdist(bank.rows.double(), bank.rows.double())
    for center in (0, 5, MIN_ROWS + 5):
        expected = squares[center].index_fill(0, torch.tensor(center), -1).argsort(stable=True)[:4]
        assert torch.equal(neighbours(bank, center, 4), expected)


def test_queries_far_from_the_bank_are_measured_all_the_same():
    bank = _part_like(MIN_ROWS, 1)
    query = 100 * torch.randn(40, DIM, generator=torch.Generator().manual_seed(3))
    index = nearest_rows(query, BankIndex.of(bank))[1]
    assert torch.equal(index, exact_nearest(query, bank)[1])


@pytest.mark.parametrize(
    "bank",
    [
        torch.randn(2 * MIN_ROWS, 3 * DIM, generator=torch.Generator().manual_seed(0)),
        _part_like(MIN_ROWS - 1, 0),
        torch.full((MIN_ROWS, DIM), torch.nan),
        torch.ones(MIN_ROWS, DIM),
        torch.randn(MIN_ROWS, 2 * DIRECTIONS),
    ],
    ids=["noise", "small", "not finite", "all equal", "few dims"],
)
def test_there_is_no_filter_where_it_would_not_help(bank):
    found = _filter(bank)
    assert found is None or not bank.std()
