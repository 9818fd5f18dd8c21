import numpy as np
import pytest
import torch
from sklearn.random_projection import SparseRandomProjection

from feature_extractors.memory_bank import greedy
from feature_extractors.memory_bank.coreset import greedy_coreset, sparse_projection
from feature_extractors.memory_bank.training_patches import NO_STANDARDIZATION
from tests.reference.coreset import confirmed_steps, plain_greedy_coreset, torch_norm

DTYPES = ["float16", "float32"]


@pytest.fixture(params=[16, 2048])
def candidates(request, monkeypatch):
    """Many small batches, and one batch that holds everything."""
    monkeypatch.setattr(greedy, "CANDIDATES", request.param)
    monkeypatch.setitem(greedy.CHOSEN_AT_ONCE, "cpu", 7 if request.param == 16 else 512)
    return request.param


def _gaussian(size, dim):
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(size + dim))


def _clusters(size, dim):
    generator = torch.Generator().manual_seed(size)
    centers = 4 * torch.randn(12, dim, generator=generator)
    return centers[torch.arange(size) % 12] + 0.1 * torch.randn(size, dim, generator=generator)


def _half_empty(size, dim):
    rows = _clusters(size, dim)
    rows[torch.arange(size) % 3 > 0] = 0
    return rows


def _grid(size, dim):
    return (3 * _gaussian(size, dim)).round()[:, : min(dim, 3)]


def _far_from_the_origin(size, dim):
    return _gaussian(size, dim) + 100


def _equal_in_float16_only(size, dim):
    return 1 + 2e-5 * _gaussian(size, dim) + (torch.arange(size) % 9)[:, None]


CASES = [_gaussian, _clusters, _half_empty, _grid, _far_from_the_origin, _equal_in_float16_only]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("dim", [5, 130])
def test_greedy_coreset_equals_one_pass_per_choice(make, dim, dtype, candidates):
    rows = make(700, dim)
    assert torch.equal(greedy_coreset(rows, 150, dtype=dtype), plain_greedy_coreset(rows, 150, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_projected_float64_rows_are_measured_in_float64_first(dtype, candidates):
    rows = _gaussian(900, 40).double() * 1.0001
    assert torch.equal(greedy_coreset(rows, 200, dtype=dtype), plain_greedy_coreset(rows, 200, dtype=dtype))


def test_our_sum_of_squares_chooses_as_torchs_does():
    rows = _gaussian(900, 40)
    assert torch.equal(
        greedy_coreset(rows, 200), plain_greedy_coreset(rows, 200, dtype="float16", norm=torch_norm)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [_gaussian, _grid])
def test_each_choice_is_the_farthest_row_at_a_larger_size(make, dtype):
    rows = make(9000, 40)
    chosen = greedy_coreset(rows, 600, dtype=dtype)
    assert confirmed_steps(rows, chosen, dtype=dtype) == 600
    assert confirmed_steps(rows, chosen[[0, 2, 1, *range(3, 600)]], dtype=dtype) < 600


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 100, 101, 150, 300])
def test_items_that_share_rows_are_chosen_as_if_each_had_its_own(n, dtype, candidates):
    rows = torch.cat([torch.zeros(1, 20), _clusters(100, 20)])  # 101 rows, one of them not used
    index = torch.from_numpy(np.random.RandomState(0).permutation(np.arange(300) % 100))
    chosen = greedy_coreset(rows, n, index=index, dtype=dtype)
    assert torch.equal(chosen, plain_greedy_coreset(rows[index], n, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extra", [0, 1, 40])
def test_item_0_fills_up_when_every_distinct_row_is_taken(extra, dtype, candidates):
    rows = _gaussian(60, 8).repeat(3, 1)
    chosen = greedy_coreset(rows, 60 + extra, dtype=dtype)
    assert chosen[:60].unique().numel() == 60
    assert not chosen[60:].any()
    assert torch.equal(chosen, plain_greedy_coreset(rows, 60 + extra, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_choosing_all_rows_is_a_permutation(dtype, candidates):
    assert torch.equal(greedy_coreset(_gaussian(90, 6), 90, dtype=dtype).sort().values, torch.arange(90))


def test_float16_rounding_equals_numpys_for_every_exponent():
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 0x7BFF, (2, 20000)).astype(np.uint16).view(np.float16).astype(np.float32)
    difference = halves[0] - halves[1]
    expected = difference.astype(np.float16).astype(np.float32)
    greedy._round_to_half(difference)
    np.testing.assert_array_equal(difference, expected)
    roots = np.exp(rng.uniform(-20, 11, 5000)).astype(np.float32)
    np.testing.assert_array_equal([greedy._half(root) for root in roots], roots.astype(np.float16))


def test_a_tie_between_two_float16_numbers_goes_to_the_even_one():
    assert greedy._half(np.float32(1 + 2**-11)) == 1
    assert greedy._half(np.float32(1 + 3 * 2**-11)) == np.float32(1 + 2**-9)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_chooses_as_the_cpu_does(dtype):
    rows = _clusters(20000, 130)
    on_gpu = greedy_coreset(rows.cuda(), 2000, dtype=dtype)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), greedy_coreset(rows, 2000, dtype=dtype))


@pytest.mark.parametrize("n", [-1, 0, 11])
def test_a_size_that_cannot_be_had_names_the_flag(n):
    with pytest.raises(ValueError, match=rf"--f_coreset: {n} of 10"):
        greedy_coreset(_gaussian(10, 4), n)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        greedy_coreset(torch.empty(0, 4), 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4, -4e4])
def test_values_beyond_float16_are_an_error_that_names_the_remedy(value):
    rows = _gaussian(10, 4)
    rows[3, 2] = value
    with pytest.raises(ValueError, match="--coreset_dtype float32"):
        greedy_coreset(rows, 2)


def test_float32_has_the_range_that_float16_lacks():
    rows = _gaussian(50, 4) * 1e6
    assert torch.equal(
        greedy_coreset(rows, 20, dtype="float32"), plain_greedy_coreset(rows, 20, dtype="float32")
    )


def test_distances_just_inside_float16_are_those_of_the_loop(candidates):
    rows = 3e3 * _gaussian(300, 4)
    assert torch.equal(greedy_coreset(rows, 60), plain_greedy_coreset(rows, 60, dtype="float16"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_projection_of_distinct_rows_is_scikit_learns_of_all_rows(dtype):
    rows, index = _gaussian(5000, 384).to(dtype), torch.arange(9000) % 5000
    expected = SparseRandomProjection(eps=0.9, random_state=3).fit_transform(rows[index])
    projected = sparse_projection(rows, NO_STANDARDIZATION, n_samples=9000, eps=0.9, random_state=3)
    np.testing.assert_array_equal(projected[index].numpy(), expected)


def test_successive_projections_draw_from_one_random_state():
    rows, ours, theirs = _gaussian(300, 256), np.random.RandomState(0), np.random.RandomState(0)
    for n_samples in (300, 150):
        projected = sparse_projection(
            rows[:n_samples], NO_STANDARDIZATION, n_samples=n_samples, eps=0.9, random_state=ours
        )
        expected = SparseRandomProjection(eps=0.9, random_state=theirs).fit_transform(rows[:n_samples])
        np.testing.assert_array_equal(projected.numpy(), expected)
    assert ours.randint(1 << 30) == theirs.randint(1 << 30)


@pytest.mark.parametrize("n_samples", [1, 100000])
def test_rows_that_projection_would_not_shorten_stay_and_nothing_is_drawn(n_samples):
    rows, random_state = _gaussian(10, 64), np.random.RandomState(0)
    with pytest.raises(ValueError, match="target dimension"):
        SparseRandomProjection(eps=0.9).fit(np.broadcast_to(0.0, (n_samples, 64)))
    assert (
        sparse_projection(rows, NO_STANDARDIZATION, n_samples=n_samples, eps=0.9, random_state=random_state)
        is rows
    )
    assert random_state.randint(1 << 30) == np.random.RandomState(0).randint(1 << 30)


@pytest.mark.parametrize("eps", [0.0, 1.0, -0.1])
def test_a_distortion_outside_0_to_1_names_the_flag(eps):
    with pytest.raises(ValueError, match="--coreset_eps"):
        sparse_projection(_gaussian(10, 64), NO_STANDARDIZATION, n_samples=10, eps=eps, random_state=0)


@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22])
def test_rows_whose_squares_are_below_float32_are_chosen_as_the_loop_does(scale, candidates):
    rows = scale * _gaussian(600, 10)
    expected = plain_greedy_coreset(rows, 150, dtype="float32")
    assert torch.equal(greedy_coreset(rows, 150, dtype="float32"), expected)
