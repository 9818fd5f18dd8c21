"""From samples to patches: fusion, empty and small clouds, batches, seeds."""

import dataclasses

import numpy as np
import pytest
import torch

from feature_extractors.extractor import Extractor, Preparation, fuse_patches
from feature_extractors.networks import Networks, load_networks
from feature_extractors.settings import Quirks, Settings
from models.alignment import pool_points
from models.fpfh.descriptors import fpfh_features
from models.uff.block import FusionBlock
from models.uff.pairing import paired_rgb
from utils.structures import Patches, Sample

CPU = torch.device("cpu")
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
        mask=np.zeros((SIZE, SIZE), bool),
        label=0,
        path=f"train/good/rgb/{seed:03d}.png",
    )


@pytest.fixture(scope="module")
def networks() -> Networks:
    return load_networks(FUSION, None, None)


def _extract(settings: Settings, networks: Networks, samples: list[Sample]):
    prepared = [Preparation(settings)(sample) for sample in samples]
    return Extractor(settings, networks, CPU).extract(prepared)


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
    assert sorted(fused.index.unique().tolist()) == list(range(len(fused.rows)))


def test_each_modality_has_its_grid_and_width(networks):
    (patches,) = _extract(FUSION, networks, [_sample(400)])
    shapes = {name: (tuple(p.dense().shape), p.side) for name, p in patches.items()}
    assert shapes == {"rgb": ((16, 384), 4), "xyz": ((64, 1152), 8), "fusion": ((64, 1536), 8)}


def test_method_without_a_modality_needs_no_network_of_it(networks):
    (patches,) = _extract(POINT_MAE, Networks(xyz=networks.xyz), [_sample(400)])
    assert set(patches) == {"xyz"}
    dino = dataclasses.replace(FUSION, method_name="DINO")
    (patches,) = _extract(dino, Networks(rgb=networks.rgb), [_sample(400)])
    assert set(patches) == {"rgb"}


def test_networks_are_those_of_the_method_frozen_and_equal_by_seed(networks):
    again = load_networks(dataclasses.replace(POINT_MAE, method_name="DINO+Point_MAE"), None, None)
    assert again.fusion is None
    assert load_networks(FPFH, None, None) == Networks(sources={"xyz": "none needed"})
    for first, second in ((networks.rgb, again.rgb), (networks.xyz, again.xyz)):
        assert not first.training
        assert not any(parameter.requires_grad for parameter in first.parameters())
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


def test_batch_gives_what_its_samples_give_one_by_one(networks):
    samples = [_sample(400, 0), _sample(0, 1), _sample(900, 2)]
    together = _extract(FUSION, networks, samples)
    for sample, batched in zip(samples, together, strict=True):
        (alone,) = _extract(FUSION, networks, [sample])
        for name, patches in alone.items():
            torch.testing.assert_close(batched[name].dense(), patches.dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [POINT_MAE, FPFH], ids=["Point_MAE", "FPFH"])
def test_empty_cloud_has_empty_patches_and_a_remark(networks, settings):
    prepared = Preparation(settings)(_sample(0))
    assert prepared.remarks == ("the cloud has no point: all xyz patches are empty",)
    (patches,) = Extractor(settings, Networks(xyz=networks.xyz), CPU).extract([prepared])
    assert tuple(patches["xyz"].dense().shape) == (settings.xyz_side**2, settings.xyz_dim)
    assert not patches["xyz"].dense().any()


def test_fused_patches_of_an_empty_cloud_are_those_of_zero_xyz_rows(networks):
    (patches,) = _extract(FUSION, networks, [_sample(0)])
    rgb = patches["rgb"].dense()[paired_rgb("colocated", 4, 8)]
    torch.testing.assert_close(patches["fusion"].dense(), networks.fusion.fuse(torch.zeros(64, 1152), rgb))


@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_cloud_of_fewer_points_than_groups_has_finite_patches_and_a_remark(networks, count):
    prepared = Preparation(POINT_MAE)(_sample(count))
    assert prepared.remarks == (
        f"the cloud has {count} points, --num_group and --group_size want 16: fewer are used",
    )
    (patches,) = Extractor(POINT_MAE, Networks(xyz=networks.xyz), CPU).extract([prepared])
    dense = patches["xyz"].dense()
    assert torch.isfinite(dense).all()
    assert 0 < (dense != 0).any(dim=1).sum() <= 4 * count


def test_cloud_of_enough_points_has_no_remark():
    assert Preparation(POINT_MAE)(_sample(16)).remarks == ()


@pytest.mark.parametrize("count", [1, 3, 500])
def test_fpfh_patches_are_the_pooled_descriptors_in_float64_where_they_stand_alone(count):
    sample = _sample(count)
    (patches,) = _extract(FPFH, Networks(), [sample])
    descriptors = fpfh_features(sample.points, np.float64)
    side = FPFH.xyz_side
    expected = pool_points(descriptors, sample.pixel_index, image_size=SIZE, side=side)
    assert patches["xyz"].rows.dtype == torch.float64
    assert torch.equal(patches["xyz"].dense(), expected.dense())
    beside = dataclasses.replace(FPFH, method_name="DINO+Point_MAE")
    assert Preparation(beside)(sample).descriptors.rows.dtype == torch.float32


class TestLiveDropPath:
    SETTINGS = dataclasses.replace(POINT_MAE, quirks=Quirks(drop_path="live"))

    def _rows(self, seed: int) -> list[torch.Tensor]:
        settings = dataclasses.replace(self.SETTINGS, seed=seed)
        network = load_networks(self.SETTINGS, None, None).xyz
        found = _extract(settings, Networks(xyz=network), [_sample(400)] * 8)
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
        _extract(dataclasses.replace(POINT_MAE, seed=seed), Networks(xyz=networks.xyz), [_sample(400)])
        for seed in (0, 1)
    )
    assert torch.equal(first["xyz"].rows, second["xyz"].rows)
