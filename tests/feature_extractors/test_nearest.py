import pytest
import torch

from feature_extractors.memory_bank import nearest, screens
from feature_extractors.memory_bank.nearest import NearestRows
from feature_extractors.memory_bank.products import exact_squares, full_precision, possible_nearest
from tests.reference.nearest import exact_nearest, exact_neighbors, released_nearest


def _features(size, dim, seed, offset=0.0):
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.fixture
def hold(monkeypatch):
    """Sets how many distances are held at once."""
    return lambda distances: monkeypatch.setitem(nearest.DISTANCES_AT_ONCE, "cpu", distances)


@pytest.mark.parametrize("distances_at_once", [1, 1000, 2**21])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("dim", [3, 200])
def test_nearest_row_is_that_of_float64(dim, offset, distances_at_once, hold):
    hold(distances_at_once)
    query, rows = _features(80, dim, 0, offset), _features(500, dim, 1, offset)
    distance, row_number = NearestRows(rows).nearest(query)
    expected_distance, expected_row = exact_nearest(query, rows)
    assert torch.equal(row_number, expected_row)
    torch.testing.assert_close(distance, expected_distance, rtol=2e-7, atol=0)


def test_pairs_that_float32_products_confuse_are_told_apart():
    query = _features(50, 64, 0, 50.0)
    rows = (query[:, None] + 1e-3 * _features(50 * 20, 64, 1).view(50, 20, 64)).flatten(0, 1)
    expected = exact_nearest(query, rows)[1]
    assert not torch.equal(released_nearest(query, rows)[1], expected)  # else this tests nothing
    assert torch.equal(NearestRows(rows).nearest(query)[1], expected)


@pytest.mark.parametrize("distances_at_once", [40, 2**21])
def test_a_bank_row_is_at_distance_0_from_itself(distances_at_once, hold):
    hold(distances_at_once)
    rows = _features(300, 128, 0, 5.0)
    distance, row_number = NearestRows(rows).nearest(rows)
    assert not distance.any()
    assert torch.equal(row_number, torch.arange(300))


@pytest.mark.parametrize("distances_at_once", [100, 2**21])
def test_ties_go_to_the_lowest_row_number(distances_at_once, hold):
    hold(distances_at_once)
    rows = _features(40, 16, 0).repeat(5, 1)
    assert torch.equal(NearestRows(rows).nearest(rows)[1], torch.arange(40).repeat(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_other_types_are_measured_as_the_float32_numbers_they_round_to(dtype, hold):
    hold(60 * 64)
    query, rows = _features(60, 32, 0).to(dtype), _features(200, 32, 1).to(dtype)
    search = NearestRows(rows)
    expected = NearestRows(rows.float()).nearest(query.float())
    assert search.rows is rows
    assert all(map(torch.equal, search.nearest(query), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_rows_around_a_bank_row_are_those_of_float64(dtype, offset):
    rows = _features(300, 20, 0, offset).repeat(2, 1).to(dtype)
    rows[7] += 0.02
    search = NearestRows(rows)
    for row in (0, 7, 20, 307, 599):
        assert torch.equal(search.around(row, 4), exact_neighbors(rows, row, 4))


def test_an_offset_costs_no_pairs(monkeypatch):
    measured = []

    def record(query, rows, pairs):
        measured.append(len(pairs[0]))
        return exact_squares(query, rows, pairs)

    monkeypatch.setattr(nearest, "exact_squares", record)
    query, rows = _features(50, 64, 0, 300.0), _features(1000, 64, 1, 300.0)
    NearestRows(rows).nearest(query)
    assert len(query) <= sum(measured) < 2 * len(query)


def test_no_more_distances_are_held_than_allowed(monkeypatch, hold):
    sizes = []

    def record(query, query_squares, rows, *others):
        sizes.append(len(query) * len(rows))
        return possible_nearest(query, query_squares, rows, *others)

    monkeypatch.setattr(screens, "possible_nearest", record)
    monkeypatch.setitem(nearest.QUERIES_AT_ONCE, "cpu", 50)
    hold(2000)
    NearestRows(_features(1000, 8, 1)).nearest(_features(120, 8, 0))
    assert max(sizes) <= 2000
    assert sum(sizes) == 120 * 1000


def test_lower_precision_around_the_call_neither_matters_nor_is_lost():
    query, search = _features(64, 256, 0, 9.0), NearestRows(_features(400, 256, 1, 9.0))
    expected = search.nearest(query)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = search.nearest(query)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(map(torch.equal, found, expected))


def test_precision_is_full_within_and_restored_after_an_error():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RuntimeError, match="highest within"), full_precision("cpu"):
            raise RuntimeError(f"{torch.get_float32_matmul_precision()} within")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_no_queries_give_no_distances():
    distance, row_number = NearestRows(_features(5, 4, 0)).nearest(torch.empty(0, 4))
    assert distance.shape == row_number.shape == (0,)
    assert (distance.dtype, row_number.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("query", "rows", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(0, 3), "no rows"),
        (torch.zeros(2, 3), torch.zeros(5, 4), r"\(2, 3\) and bank \(5, 4\)"),
        (torch.full((2, 3), torch.nan), torch.zeros(5, 3), "query: NaN or infinite"),
        (torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [torch.inf, 0, 0]]), "bank: NaN or infinite"),
    ],
)
def test_what_has_no_nearest_row_is_an_error(query, rows, message):
    with pytest.raises(ValueError, match=message):
        NearestRows(rows).nearest(query)


@pytest.mark.cuda
def test_cuda_finds_the_rows_that_the_cpu_finds():
    query, rows = _features(500, 256, 0, 3.0), _features(4000, 256, 1, 3.0)
    search, on_gpu = NearestRows(rows), NearestRows(rows.cuda())
    distance, row_number = on_gpu.nearest(query.cuda())
    expected = search.nearest(query)
    assert torch.equal(row_number.cpu(), expected[1])
    torch.testing.assert_close(distance.cpu(), expected[0], rtol=2e-7, atol=0)
    assert torch.equal(on_gpu.around(17, 4).cpu(), search.around(17, 4))


@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22, 1e-23])
def test_rows_whose_squares_are_below_float32_have_their_nearest_too(scale):
    query, rows = scale * _features(40, 300, 0), scale * _features(1100, 300, 1)
    distance, row_number = NearestRows(rows).nearest(query)
    expected = exact_nearest(query, rows)
    assert torch.equal(row_number, expected[1])
    torch.testing.assert_close(distance, expected[0], rtol=2e-7, atol=0)
