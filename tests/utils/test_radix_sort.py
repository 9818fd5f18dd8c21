import numpy as np
import pytest

from tests.reference.metrics import plain_pixel_metrics
from utils.metrics import pixel_metrics
from utils.radix_sort import sort_scores


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal(100_000),
        np.random.default_rng(0).integers(-3, 3, 10_000),
        [np.inf, -np.inf, 0.0, -1.0, 1e-45, -1e-45, 3e38, 1.0],
        [],
    ],
    ids=["negative and positive", "ties", "extremes", "nothing"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_is_that_of_numpy_and_the_input_stays_as_it_is(values, dtype):
    values = np.array(values, dtype=dtype)
    before = values.copy()
    np.testing.assert_array_equal(sort_scores(values), np.sort(values))
    np.testing.assert_array_equal(values, before)


def test_pixel_metrics_equal_those_of_the_plain_way():
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 64, 64), bool)
    masks[:4, 10:20, 30:50] = masks[1:3, 40:45, 5:9] = True
    maps = (rng.standard_normal(masks.shape) + masks).round(1).astype(np.float32)
    found = pixel_metrics(masks, maps)
    assert (found.pixel_rocauc, found.au_pro) == pytest.approx(plain_pixel_metrics(masks, maps), abs=1e-12)
