"""From samples to patches: fusion, empty and small clouds, batches, seeds."""

import dataclasses

import numpy as np
import pytest
import torch

from feature_extractors.extractor import Extractor, fuse_patches
from feature_extractors.networks import Networks, load_networks
from feature_extractors.quirks import Quirks
from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource
from models.alignment import pool_points
from models.fpfh.descriptors import fpfh_features
from models.uff.block import FusionBlock
from utils.structures import Patches, Sample

CPU = torch.device("cpu")
RANDOM = WeightsSource(random_weights=True)
SIZE = 32  # pixels a side: 4 x 4 rgb patches, 8 x 8 xyz patches
FUSION = Settings(
    method_name="DINO+Point_MAE+Fusion",
    rgb_backbone_name="vit_small_patch8_224_dino",
    img_size=SIZE,
    num_group=16,
    group_size=8,
)
POINT_MAE = dataclasses.replace(FUSION, method_name="Point_MAE")
FPFH = dataclasses.replace(FUSION, method_name="FPFH", xyz_backbone_name="FPFH")


def _sample(num_points: int, seed: int = 0) -> Sample:
    """A noisy image and the first points of a bumpy plate half a metre away."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[1 : SIZE + 1, 1 : SIZE + 1] / (10 * SIZE)
    plate = np.stack([x, y, 0.5 + 0.01 * rng.random((SIZE, SIZE))], axis=2).astype(np.float32)
    pixel_index = np.sort(rng.permutation(SIZE * SIZE)[:num_points])
    return Sample(
        image=rng.standard_normal((3, SIZE, SIZE)).astype(np.float32),
        points=plate.reshape(-1, 3)[pixel_index],
        pixel_index=pixel_index,
    )


@pytest.fixture(scope="module")
def networks() -> Networks:
    return load_networks(FUSION, RANDOM, CPU)


def _extract(settings: Settings, networks: Networks, samples: list[Sample]):
    extractor = Extractor(settings, networks, CPU)
    return extractor.extract([extractor.preparation(sample) for sample in samples])


def _only(networks: Networks, modality: str) -> Networks:
    return Networks(
        **{**dict.fromkeys(("rgb", "xyz", "fusion")), modality: getattr(networks, modality)}, origins={}
    )


def _toy_patches(seed: int, rows: int, side: int, dim: int) -> Patches:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(rows, (side * side,), generator=generator)
    return Patches(torch.randn(rows, dim, generator=generator), index, side)


def test_fusion_puts_each_xyz_patch_beside_the_rgb_patch_above_it():
    block = FusionBlock(6, 4, 2, 3).requires_grad_(False)
    xyz, rgb = _toy_patches(1, 9, 8, 6), _toy_patches(2, 5, 4, 4)
    rgb_map = rgb.dense().T.reshape(1, 4, 4, 4)
    above = torch.nn.functional.adaptive_avg_pool2d(rgb_map, 8)[0].flatten(1).T
    fused = fuse_patches(block, xyz, rgb)
    torch.testing.assert_close(fused.dense(), block.fuse(xyz.dense(), above))
    assert fused.side == 8


def test_fusion_keeps_each_distinct_pair_once():
    block = FusionBlock(6, 4, 2, 3).requires_grad_(False)
    xyz, rgb = _toy_patches(1, 3, 8, 6), _toy_patches(2, 2, 4, 4)
    fused = fuse_patches(block, xyz, rgb)
    assert len(fused.rows) <= 3 * 2
    assert sorted(fused.row_of_patch.unique().tolist()) == list(range(len(fused.rows)))


def test_each_modality_has_its_grid_and_width(networks):
    (patches,) = _extract(FUSION, networks, [_sample(400)])
    shapes = {name: (tuple(p.dense().shape), p.side) for name, p in patches.items()}
    assert shapes == {"rgb": ((16, 384), 4), "xyz": ((64, 1152), 8), "fusion": ((64, 1536), 8)}


def test_method_without_a_modality_needs_no_network_of_it(networks):
    (patches,) = _extract(POINT_MAE, _only(networks, "xyz"), [_sample(400)])
    assert set(patches) == {"xyz"}
    dino = dataclasses.replace(FUSION, method_name="DINO")
    (patches,) = _extract(dino, _only(networks, "rgb"), [_sample(400)])
    assert set(patches) == {"rgb"}


def test_networks_are_those_of_the_method_frozen_and_equal_by_seed(networks):
    again = load_networks(dataclasses.replace(POINT_MAE, method_name="DINO+Point_MAE"), RANDOM, CPU)
    assert again.fusion is None
    assert load_networks(FPFH, RANDOM, CPU).origins == {"xyz": "none needed"}
    for first, second in ((networks.rgb, again.rgb), (networks.xyz.network, again.xyz.network)):
        assert not first.training
        assert not any(parameter.requires_grad for parameter in first.parameters())
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


def test_batch_gives_what_its_samples_give_one_by_one(networks):
    samples = [_sample(400, 0), _sample(3, 1), _sample(900, 2)]
    together = _extract(FUSION, networks, samples)
    for sample, batched in zip(samples, together, strict=True):
        (alone,) = _extract(FUSION, networks, [sample])
        for name, patches in alone.items():
            torch.testing.assert_close(batched[name].dense(), patches.dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modality", ["rgb", "xyz", "fusion"])
def test_bfloat16_features_differ_from_float32s_by_percents_at_most(networks, modality):
    (exact,) = _extract(FUSION, networks, [_sample(400)])
    (rounded,) = _extract(dataclasses.replace(FUSION, precision="bf16"), networks, [_sample(400)])
    found, expected = rounded[modality].dense(), exact[modality].dense()
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).norm() / expected.norm() < 5e-2


@pytest.mark.parametrize("settings", [POINT_MAE, FPFH, FUSION], ids=["Point_MAE", "FPFH", "Fusion"])
def test_cloud_without_a_point_is_refused(settings):
    extractor = Extractor(settings, load_networks(settings, RANDOM, CPU), CPU)
    with pytest.raises(ValueError, match="the cloud has no point"):
        extractor.preparation(_sample(0))


def test_method_that_looks_at_no_cloud_needs_none(networks):
    dino = dataclasses.replace(FUSION, method_name="DINO")
    (patches,) = _extract(dino, _only(networks, "rgb"), [_sample(0)])
    assert torch.isfinite(patches["rgb"].rows).all()


@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_cloud_of_fewer_points_than_groups_has_finite_patches_and_a_remark(networks, count):
    extractor = Extractor(POINT_MAE, _only(networks, "xyz"), CPU)
    prepared = extractor.preparation(_sample(count))
    assert prepared.remarks == (
        f"the cloud has {count} points, --num_group and --group_size want 16: fewer are used",
    )
    (patches,) = extractor.extract([prepared])
    dense = patches["xyz"].dense()
    assert torch.isfinite(dense).all()
    assert 0 < (dense != 0).any(dim=1).sum() <= 4 * count


def test_cloud_of_enough_points_has_no_remark(networks):
    assert Extractor(POINT_MAE, networks, CPU).preparation(_sample(16)).remarks == ()


@pytest.mark.parametrize("count", [1, 3, 500])
def test_fpfh_patches_are_the_pooled_descriptors_in_float64(count):
    sample = _sample(count)
    (patches,) = _extract(FPFH, load_networks(FPFH, RANDOM, CPU), [sample])
    descriptors = fpfh_features(sample.points)
    side = FPFH.xyz_side
    expected = pool_points(descriptors, sample.pixel_index, image_size=SIZE, side=side)
    assert patches["xyz"].rows.dtype == torch.float64
    assert torch.equal(patches["xyz"].dense(), expected.dense())


class TestLiveDropPath:
    SETTINGS = dataclasses.replace(POINT_MAE, quirks=Quirks(drop_path="live"))

    def _rows(self, seed: int) -> list[torch.Tensor]:
        settings = dataclasses.replace(self.SETTINGS, seed=seed)
        found = _extract(settings, load_networks(self.SETTINGS, RANDOM, CPU), [_sample(400)] * 8)
        return [patches["xyz"].rows for patches in found]

    def test_draws_follow_the_seed(self):
        for a, b in zip(self._rows(3), self._rows(3), strict=True):
            assert torch.equal(a, b)

    def test_draws_differ_from_sample_to_sample_and_between_seeds(self):
        rows = self._rows(3)
        assert len({float(r.sum()) for r in rows}) > 1
        assert any(not torch.equal(a, b) for a, b in zip(rows, self._rows(4), strict=True))

    def test_global_generator_is_neither_used_nor_moved(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = self._rows(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(first[0], self._rows(3)[0])


def test_without_live_drop_path_the_seed_does_not_matter(networks):
    (first,), (second,) = (
        _extract(dataclasses.replace(POINT_MAE, seed=seed), _only(networks, "xyz"), [_sample(400)])
        for seed in (0, 1)
    )
    assert torch.equal(first["xyz"].rows, second["xyz"].rows)
