import pytest
import torch

from feature_extractors.memory_bank import nearest
from feature_extractors.memory_bank.nearest import (
    BankIndex,
    full_precision,
    nearest_rows,
    neighbours,
    possible_nearest,
)
from tests.reference.nearest import exact_nearest, released_nearest


def _features(size, dim, seed, offset=0.0):
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.mark.parametrize("distances_at_once", [1, 1000, None])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("dim", [3, 200])
def test_nearest_row_is_that_of_float64(dim, offset, distances_at_once):
    query, bank = _features(80, dim, 0, offset), _features(500, dim, 1, offset)
    distance, index = nearest_rows(query, BankIndex.of(bank), distances_at_once=distances_at_once)
    expected_distance, expected_index = exact_nearest(query, bank)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected_distance, rtol=2e-7, atol=0)


def test_pairs_that_float32_products_confuse_are_told_apart():
    query = _features(50, 64, 0, 50.0)
    bank = (query[:, None] + 1e-3 * _features(50 * 20, 64, 1).view(50, 20, 64)).flatten(0, 1)
    expected = exact_nearest(query, bank)[1]
    assert not torch.equal(released_nearest(query, bank)[1], expected)  # else this tests nothing
    assert torch.equal(nearest_rows(query, BankIndex.of(bank))[1], expected)


@pytest.mark.parametrize("distances_at_once", [40, None])
def test_a_bank_row_is_at_distance_0_from_itself(distances_at_once):
    bank = _features(300, 128, 0, 5.0)
    distance, index = nearest_rows(bank, BankIndex.of(bank), distances_at_once=distances_at_once)
    assert not distance.any()
    assert torch.equal(index, torch.arange(300))


@pytest.mark.parametrize("distances_at_once", [100, None])
def test_ties_go_to_the_lowest_index(distances_at_once):
    bank = _features(40, 16, 0).repeat(5, 1)
    index = nearest_rows(bank, BankIndex.of(bank), distances_at_once=distances_at_once)[1]
    assert torch.equal(index, torch.arange(40).repeat(5))


def test_float16_features_are_measured_as_the_numbers_they_hold():
    query, bank = _features(60, 32, 0).half(), _features(200, 32, 1).half()
    distance, index = nearest_rows(query, BankIndex.of(bank), distances_at_once=60 * 64)
    expected = nearest_rows(query.float(), BankIndex.of(bank.float()))
    assert torch.equal(distance, expected[0])
    assert torch.equal(index, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_neighbours_of_a_bank_row_are_those_of_float64(dtype, offset):
    bank = _features(300, 20, 0, offset).repeat(2, 1).to(dtype)
    bank[7] += 0.02
    squares = torch.cdist(bank.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    for center in (0, 7, 20, 307, 599):
        expected = squares[center].index_fill(0, torch.tensor(center), -1).argsort(stable=True)[:4]
        assert torch.equal(neighbours(BankIndex.of(bank), center, 4), expected)


def test_an_offset_costs_no_pairs(monkeypatch):
    measured = []
    measure = nearest._exact_squares

    def record(query, row, *others):
        measured.append(len(row))
        return measure(query, row, *others)

    monkeypatch.setattr(nearest, "_exact_squares", record)
    query, bank = _features(50, 64, 0, 300.0), _features(1000, 64, 1, 300.0)
    nearest_rows(query, BankIndex.of(bank))
    assert sum(measured) < 2 * len(query)


def test_no_more_distances_are_held_than_allowed(monkeypatch):
    sizes = []

    def record(query, query_squares, centers, *others):
        sizes.append(len(query) * len(centers))
        return possible_nearest(query, query_squares, centers, *others)

    monkeypatch.setattr(nearest, "possible_nearest", record)
    monkeypatch.setitem(nearest.QUERIES_AT_ONCE, "cpu", 50)
    nearest_rows(_features(120, 8, 0), BankIndex.of(_features(1000, 8, 1)), distances_at_once=2000)
    assert max(sizes) <= 2000
    assert sum(sizes) == 120 * 1000


def test_lower_precision_around_the_call_neither_matters_nor_is_lost():
    query, bank = _features(64, 256, 0, 9.0), _features(400, 256, 1, 9.0)
    expected = nearest_rows(query, BankIndex.of(bank))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest_rows(query, BankIndex.of(bank))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(map(torch.equal, found, expected))


def test_precision_is_restored_after_an_error():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RuntimeError, match="within"), full_precision("cpu"):
            raise RuntimeError("within")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_no_queries_give_no_distances():
    distance, index = nearest_rows(torch.empty(0, 4), BankIndex.of(_features(5, 4, 0)))
    assert distance.shape == index.shape == (0,)


@pytest.mark.parametrize(
    ("query", "bank", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(0, 3), "no rows"),
        (torch.zeros(2, 3), torch.zeros(5, 4), r"\(2, 3\) and bank \(5, 4\)"),
        (torch.full((2, 3), torch.nan), torch.zeros(5, 3), "NaN or infinite"),
        (torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [torch.inf, 0, 0]]), "NaN or infinite"),
    ],
)
def test_what_has_no_nearest_row_is_an_error(query, bank, message):
    with pytest.raises(ValueError, match=message):
        nearest_rows(query, BankIndex.of(bank))


@pytest.mark.gpu
def test_cuda_finds_the_rows_that_the_cpu_finds():
    query, bank = _features(500, 256, 0, 3.0), _features(4000, 256, 1, 3.0)
    distance, index = nearest_rows(query.cuda(), BankIndex.of(bank.cuda()))
    expected = nearest_rows(query, BankIndex.of(bank))
    assert torch.equal(index.cpu(), expected[1])
    torch.testing.assert_close(distance.cpu(), expected[0], rtol=2e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22, 1e-23])
def test_rows_whose_squares_are_below_float32_have_their_nearest_too(scale):
    query, bank = scale * _features(40, 300, 0), scale * _features(1100, 300, 1)
    distance, index = nearest_rows(query, BankIndex.of(bank))
    expected = exact_nearest(query, bank)
    assert torch.equal(index, expected[1])
    torch.testing.assert_close(distance, expected[0], rtol=2e-7, atol=0)
