"""Scores of whatever a camera may give: finite, or left out by name; the same in any order, batch and process."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from feature_extractors.memory_bank.nearest import NearestRows
from m3dm_runner import M3DM, Settings
from models.alignment import align, alignment_operator
from tests.odd_samples import Cloud, clouds, loaded
from utils.observer import Observer
from utils.structures import Score

IMAGE_SIZE = 32
SMALL = {"img_size": IMAGE_SIZE, "num_group": 16, "group_size": 8, "f_coreset": 0.5}
METHODS = {"FPFH": "FPFH", "Point_MAE": "Point_MAE", "DINO+Point_MAE": "Point_MAE"}
GOOD_PARTS = [Cloud("scattered", 1023, seed, 0.0, 1.0) for seed in range(4)]
SEEDS = st.integers(0, 2**16)
Result = tuple[float, bytes] | str  # score and map, or why there is none


class _Reasons(Observer):
    """Keeps why samples are left out."""

    def __init__(self) -> None:
        self.left: dict[str, str] = {}

    def left_out(self, sample: str, reason: str) -> None:
        self.left[sample] = reason


@lru_cache
def _model(method: str) -> M3DM:
    """With random weights, fitted on a few good parts."""
    settings = Settings(
        method,
        xyz_backbone_name=METHODS[method],
        rgb_backbone_name="vit_small_patch8_224_dino",
        **SMALL,  # type: ignore[arg-type]
    )
    model = M3DM(settings, random_weights=True, device="cpu")
    return model.fit([(part.image, part.points) for part in GOOD_PARTS])


def _results(model: M3DM, parts: list[Cloud], batch_size: int = 1, num_workers: int = 0) -> list[Result]:
    model.observer, model.batch_size, model.num_workers = _Reasons(), batch_size, num_workers
    scores = list(model.predict_all([(part.image, part.points) for part in parts]))
    reasons = model.observer.left
    assert set(reasons) == {f"sample {i}" for i, score in enumerate(scores) if score is None}
    return [_result(score, reasons.get(f"sample {i}", "")) for i, score in enumerate(scores)]


def _result(score: Score | None, reason: str) -> Result:
    if score is None:
        return reason
    assert score.map.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert score.map.dtype == np.float32
    assert np.isfinite(score.map).all()
    assert np.isfinite(score.image)
    assert score.image != 0
    return score.image, score.map.tobytes()


@pytest.mark.parametrize("method", METHODS)
@given(part=clouds())
def test_a_part_has_a_finite_score_or_is_left_out_by_name(method: str, part: Cloud) -> None:
    model = _model(method)
    (result,) = _results(model, [part])
    if isinstance(result, str):
        assert result
        with pytest.raises(ValueError, match=r".+"):
            model.predict(part.image, part.points)
    else:
        assert model.predict(part.image, part.points).image == result[0]


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS, ruined=st.sampled_from((0.0, 1.0)))
def test_a_cloud_without_a_point_is_never_scored(method: str, seed: int, ruined: float) -> None:
    (reason,) = _results(_model(method), [Cloud("scattered", 0, seed, ruined, 1.0)])
    assert reason == "the cloud has no point"


@pytest.mark.parametrize("method", METHODS)
@given(parts=st.lists(clouds(), min_size=2, max_size=5), batch_size=st.integers(2, 4), random=st.randoms())
def test_scores_depend_on_no_order_and_no_batch(method, parts, batch_size, random) -> None:
    model = _model(method)
    expected = _results(model, parts)
    order = list(range(len(parts)))
    random.shuffle(order)
    found = _results(model, [parts[i] for i in order], batch_size)
    assert found == [expected[i] for i in order]


@pytest.mark.parametrize("method", ["DINO+Point_MAE"])
def test_scores_depend_on_no_number_of_workers(method: str) -> None:
    parts = [*GOOD_PARTS, Cloud("line", 127, 5, 0.1, 1.0), Cloud("plane", 0, 6, 0.0, 1.0)]
    expected = _results(_model(method), parts)
    assert any(isinstance(result, str) for result in expected)
    assert _results(_model(method), parts, batch_size=2, num_workers=2) == expected


@pytest.mark.parametrize("method", METHODS)
@given(part=clouds())
def test_patches_are_zero_where_no_point_reaches_them_and_nowhere_else(method: str, part: Cloud) -> None:
    model = _model(method)
    sample = loaded(part, IMAGE_SIZE)
    if sample is None or len(sample.points) == 0:
        return
    try:
        patches = model.extract(part.image, part.points)["xyz"]
    except ValueError as error:
        assert "features are" in str(error)  # noqa: PT017
        return
    zero = (patches.dense() == 0).all(dim=1).numpy()
    uncovered = _coverage(sample.pixel_index, patches.side) == 0
    assert zero[uncovered].all()
    if method != "FPFH":  # a point without neighbours has zeros there too
        assert not zero[~uncovered].any()


@given(
    part=clouds(),
    groups=st.integers(1, 20),
    interpolation=st.sampled_from(("exact", "cancelling")),
    side=st.sampled_from((4, 8)),
)
def test_pfa_s_weights_sum_to_the_pooled_coverage(part, groups, interpolation, side) -> None:
    sample = loaded(part, IMAGE_SIZE)
    if sample is None or len(sample.points) == 0:
        return
    centers = sample.points[:: max(1, len(sample.points) // groups)]
    operator = alignment_operator(
        sample.points,
        sample.pixel_index,
        centers,
        image_size=IMAGE_SIZE,
        side=side,
        interpolation=interpolation,
    )
    sums = align(operator, torch.ones(len(centers), 1)).dense()[:, 0].numpy()
    np.testing.assert_allclose(sums, _coverage(sample.pixel_index, side), rtol=1e-5, atol=1e-7)


@given(
    count=st.integers(1, 70),
    dim=st.integers(1, 40),
    seed=SEEDS,
    scale=st.sampled_from((1e-15, 1e-3, 1.0, 1e4, 1e15)),
    offset=st.sampled_from((0.0, 1.0, 1e3)),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.float16)),
)
def test_a_row_of_the_bank_is_at_distance_0_from_it(count, dim, seed, scale, offset, dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.float16:
        scale = min(1.0, scale)
    rows = (scale * (torch.randn(count, dim, generator=generator) + offset)).to(dtype)
    rows = torch.cat([rows, rows[: count // 2], rows.new_zeros(1, dim)])  # some twice
    distance, row_number = NearestRows(rows).nearest(rows)
    assert (distance == 0).all()
    assert torch.equal(rows[row_number].float(), rows.float())


def _coverage(pixel_index: np.ndarray, side: int) -> np.ndarray:
    """Share of points in what each patch averages, (side * side,), by torch's own pooling."""
    covered = torch.zeros(IMAGE_SIZE**2, dtype=torch.float64)
    covered[torch.from_numpy(pixel_index)] = 1
    image = covered.reshape(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    return F.adaptive_avg_pool2d(F.avg_pool2d(image, 3, stride=1), side).flatten().numpy()
