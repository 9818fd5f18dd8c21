import pytest
import torch

from feature_extractors.memory_bank import nearest, screens
from feature_extractors.memory_bank.nearest import NearestRows
from feature_extractors.memory_bank.nearest_filter import (
    DIRECTIONS,
    FILTER_TRIALS,
    MIN_ROWS,
    FilteredQueries,
    make_filter,
)
from feature_extractors.memory_bank.products import possible_nearest
from feature_extractors.memory_bank.screens import ProductScreen
from tests.reference.nearest import exact_nearest, exact_neighbors

DIM = 3 * DIRECTIONS


def _noise(size, dim, seed=0):
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))


def _part_like(size, seed, hidden_dims=40, offset=3.0):
    """Rows on few dimensions, with noise, as patches of a part are."""
    basis = _noise(hidden_dims, DIM)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, hidden_dims, generator=generator)
    return hidden @ basis + 0.1 * torch.randn(size, DIM, generator=generator) + offset


def _clusters(size, seed):
    """Rows of few clusters: structure enough for a filter, which can't tell the rows of a cluster apart."""
    centers = 10 * _noise(4, DIM)
    return centers[torch.arange(size) % 4] + _noise(size, DIM, seed)


def _filter(rows):
    return make_filter(ProductScreen(rows))


@pytest.fixture
def products(monkeypatch):
    """The numbers of distances that products of all dims were asked for."""
    sizes = []

    def record(query, query_squares, rows, *others):
        sizes.append(len(query) * len(rows))
        return possible_nearest(query, query_squares, rows, *others)

    monkeypatch.setattr(screens, "possible_nearest", record)
    return sizes


@pytest.mark.parametrize("distances_at_once", [20_000, 2**21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_filter_changes_nothing_and_spares_all_products(monkeypatch, products, dtype, distances_at_once):
    monkeypatch.setitem(nearest.DISTANCES_AT_ONCE, "cpu", distances_at_once)
    query, rows = _part_like(100, 1).to(dtype), _part_like(2 * MIN_ROWS, 2).to(dtype)
    distance, row_number = NearestRows(rows).nearest(query)
    assert not products
    expected = exact_nearest(query.float(), rows.float())
    assert torch.equal(row_number, expected[1])
    torch.testing.assert_close(distance, expected[0], rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("query", [_part_like(50, 1), 100 * _noise(50, DIM, 1)], ids=["alike", "far"])
def test_bounds_are_below_the_distances_and_close_to_them(query, dtype):
    rows = _part_like(MIN_ROWS, 2).to(dtype)
    screen = _filter(rows)
    bounds = torch.stack([screen.lower_bounds(one[None]) for one in query])
    squares = torch.cdist(query.double(), rows.double()).square()
    assert (bounds <= squares).all()
    assert (bounds / squares).median() > 0.9


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 100.0), (torch.float64, 1e7)])
def test_bound_of_a_row_to_itself_allows_for_rounding(dtype, offset):
    rows = _part_like(MIN_ROWS, 1).to(dtype) + offset
    screen = _filter(rows)
    assert all(screen.lower_bounds(rows[k : k + 1].float())[k] <= 0 for k in range(0, MIN_ROWS, 8))


def test_ties_go_to_the_lowest_row_number_and_rows_lie_at_distance_0_from_themselves(monkeypatch, products):
    monkeypatch.setitem(nearest.DISTANCES_AT_ONCE, "cpu", 200 * 500)
    rows = _part_like(MIN_ROWS, 1).repeat(3, 1)
    distance, row_number = NearestRows(rows).nearest(rows[:200])
    assert not products
    assert torch.equal(row_number, torch.arange(200))
    assert not distance.any()


def test_rows_around_a_bank_row_are_those_of_float64(monkeypatch):
    monkeypatch.setattr(ProductScreen, "lower_bounds", None)  # only the filter may be asked
    rows = _part_like(MIN_ROWS, 1).repeat(2, 1)
    search = NearestRows(rows)
    for row in (0, 5, MIN_ROWS + 5):
        assert torch.equal(search.around(row, 4), exact_neighbors(rows, row, 4))


def test_queries_far_from_the_bank_have_their_nearest_too():
    rows, query = _part_like(MIN_ROWS, 1), 100 * _noise(40, DIM, seed=3)
    assert torch.equal(NearestRows(rows).nearest(query)[1], exact_nearest(query, rows)[1])


def test_queries_that_the_filter_fails_on_go_to_the_products_after_a_few_trials(monkeypatch, products):
    trials = []

    def record(queries, block, *others):
        trials.append(block.start)
        return _few_pairs(queries, block, *others)

    _few_pairs = FilteredQueries._few_pairs
    monkeypatch.setattr(FilteredQueries, "_few_pairs", record)
    monkeypatch.setitem(nearest.DISTANCES_AT_ONCE, "cpu", 40 * 256)
    rows, query = _clusters(2 * MIN_ROWS, 1), _clusters(40, 2)
    search = NearestRows(rows)
    assert torch.equal(search.nearest(query)[1], exact_nearest(query, rows)[1])
    assert trials == [256 * k for k in range(FILTER_TRIALS)]
    assert products == [40 * 256] * (2 * MIN_ROWS // 256)
    search.nearest(query)
    assert len(trials) == 2 * FILTER_TRIALS  # each chunk of queries has its own


@pytest.mark.parametrize(
    "rows",
    [
        _noise(2 * MIN_ROWS, 3 * DIM),
        _part_like(MIN_ROWS - 1, 0),
        torch.full((MIN_ROWS, DIM), 0.1),
        _part_like(MIN_ROWS, 0)[:, : 2 * DIRECTIONS],
    ],
    ids=["noise", "small", "all equal", "few dims"],
)
def test_there_is_no_filter_where_it_would_not_help(rows):
    assert _filter(rows) is None


def test_the_smallest_bank_with_structure_has_a_filter():
    assert _filter(_part_like(MIN_ROWS, 0)[:, : 2 * DIRECTIONS + 1]) is not None
