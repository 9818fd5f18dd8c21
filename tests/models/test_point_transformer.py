from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.point_transformer.encoder import POINT_TRANSFORMERS, build_point_transformer
from models.point_transformer.group_encoder import BatchNormStatistics, GroupEncoder
from models.point_transformer.point_ops import group_points
from models.point_transformer.transformer import TOKEN_DIM, PointTransformer, drop_path
from tests.reference.formula import fill
from tests.reference.point_ops import wavy_surface
from tests.reference.point_transformer import plain_group_tokens

GOLDENS = Path(__file__).parents[1] / "reference" / "goldens"
STATISTICS: tuple[BatchNormStatistics, ...] = ("cloud", "running")
CHANNEL_STEP = 4  # the golden tokens keep every 4th channel


@pytest.fixture(scope="module")
def point_mae() -> PointTransformer:
    """Point-MAE with formula weights; not to be changed."""
    return fill(build_point_transformer("Point_MAE"))


def clouds(num_group: int = 40, group_size: int = 24) -> tuple[Tensor, Tensor]:
    """Two different clouds: groups (2, G, M, 3) and centers (2, G, 3)."""
    found = [
        group_points(wavy_surface(n, seed=n) * scale, num_group, group_size)
        for n, scale in ((900, 1), (1500, 2))
    ]
    groups = np.stack([one.groups for one in found])
    centers = np.stack([one.centers for one in found])
    return torch.from_numpy(groups), torch.from_numpy(centers)


@pytest.mark.parametrize("batchnorm", STATISTICS)
@pytest.mark.parametrize("encoder_dim", [256, 384])
@torch.no_grad()
def test_folded_encoder_equals_the_layers_in_float64(
    encoder_dim: int, batchnorm: BatchNormStatistics
) -> None:
    encoder = fill(GroupEncoder(encoder_dim, batchnorm=batchnorm), prefix="encoder.")
    groups, _ = clouds(num_group=100, group_size=64)
    tokens = encoder(groups)
    encoder.double()
    expected = torch.stack([plain_group_tokens(encoder, cloud) for cloud in groups.double()])
    assert relative_error(tokens, expected) < 2e-6


@torch.no_grad()
def test_folded_encoder_equals_the_layers_where_the_cloud_does_not_fill_space() -> None:
    encoder = fill(GroupEncoder(384), prefix="encoder.")
    groups, _ = clouds()
    groups[0, :, :, 2] = 0  # a plane: no variance across it
    groups[1] = 0  # all points in one place: no variance at all
    tokens = encoder(groups)
    encoder.double()
    expected = torch.stack([plain_group_tokens(encoder, cloud) for cloud in groups.double()])
    assert relative_error(tokens, expected) < 1e-5


@pytest.mark.parametrize("batchnorm", STATISTICS)
def test_encoder_gives_the_same_in_training_and_evaluation_mode_and_moves_no_statistics(
    batchnorm: BatchNormStatistics,
) -> None:
    encoder = fill(GroupEncoder(256, batchnorm=batchnorm))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    groups, _ = clouds()
    torch.testing.assert_close(encoder.train()(groups), encoder.eval()(groups), rtol=0, atol=0)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("batchnorm", STATISTICS)
@pytest.mark.parametrize("name", POINT_TRANSFORMERS)
def test_tokens_equal_the_released_ones(name: str, batchnorm: BatchNormStatistics) -> None:
    points = np.load(GOLDENS / "point_ops.npz", allow_pickle=False)
    expected = np.load(GOLDENS / "point_transformer.npz", allow_pickle=False)[f"{name}.{batchnorm}"]
    network = fill(build_point_transformer(name, batchnorm=batchnorm))
    found = group_points(points["points"], num_group=64, group_size=32)
    tokens = network(torch.from_numpy(found.groups)[None], torch.from_numpy(found.centers)[None])
    assert tokens.shape == (1, 64, TOKEN_DIM)
    assert relative_error(tokens[0, :, ::CHANNEL_STEP].T, torch.from_numpy(expected)) < 1e-5


@pytest.mark.parametrize("name", POINT_TRANSFORMERS)
def test_a_batch_gives_what_its_clouds_give_one_by_one(name: str) -> None:
    network = build_point_transformer(name)
    groups, centers = clouds()
    alone = torch.cat([network(groups[i : i + 1], centers[i : i + 1]) for i in range(2)])
    assert relative_error(network(groups, centers), alone) < 1e-5


def test_state_dict_names_are_those_of_the_published_checkpoints() -> None:
    point_mae, point_bert = (set(build_point_transformer(name).state_dict()) for name in POINT_TRANSFORMERS)
    assert len(point_mae) == 156
    assert point_bert - point_mae == {"cls_token", "cls_pos", "reduce_dim.weight", "reduce_dim.bias"}
    assert {
        "encoder.first_conv.1.running_mean",
        "encoder.second_conv.3.weight",
        "pos_embed.2.bias",
        "blocks.blocks.11.attn.qkv.weight",
        "blocks.blocks.0.mlp.fc2.bias",
        "norm.weight",
    } < point_mae
    assert "blocks.blocks.0.attn.qkv.bias" not in point_mae


def test_built_network_is_frozen(point_mae: PointTransformer) -> None:
    assert not any(module.training for module in point_mae.modules())
    assert not any(parameter.requires_grad for parameter in point_mae.parameters())


def test_without_drop_path_nothing_is_random(point_mae: PointTransformer) -> None:
    groups, centers = clouds()
    first = point_mae(groups, centers, torch.Generator().manual_seed(1))
    torch.testing.assert_close(first, point_mae(groups, centers), rtol=0, atol=0)


def test_live_drop_path_follows_the_generator() -> None:
    network = PointTransformer(encoder_dim=384, class_token=False, drop_path=0.9).requires_grad_(False)
    groups, centers = clouds()
    first, again, other = (
        network(groups, centers, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert relative_error(other, first) > 1e-2


def test_drop_path_rates_rise_linearly_from_zero_to_the_released_tenth() -> None:
    rates = [block.drop_rate for block in build_point_transformer("Point_Bert", drop_path=True).blocks.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-7)


def test_drop_path_drops_whole_clouds_and_keeps_the_mean() -> None:
    dropped = drop_path(torch.ones(4000, 2, 3), 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)


def test_live_drop_path_without_a_generator_is_refused() -> None:
    network = build_point_transformer("Point_MAE", drop_path=True)
    with pytest.raises(ValueError, match="no generator"):
        network(*clouds())


def test_bfloat16_comes_near(point_mae: PointTransformer) -> None:
    groups, centers = clouds()
    tokens = copy.deepcopy(point_mae).to(torch.bfloat16)(groups, centers)
    assert tokens.dtype == torch.bfloat16
    assert relative_error(tokens, point_mae(groups, centers)) < 3e-2


@pytest.mark.cuda
@pytest.mark.parametrize("name", POINT_TRANSFORMERS)
def test_tokens_are_the_same_on_the_gpu(name: str) -> None:
    network = fill(build_point_transformer(name))
    groups, centers = clouds()
    expected = network(groups, centers)
    assert relative_error(network.cuda()(groups.cuda(), centers.cuda()).cpu(), expected) < 1e-5


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_clouds_of_coincident_points_have_finite_tokens() -> None:
    network = build_point_transformer("Point_MAE")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.bias, std=30, generator=torch.Generator().manual_seed(0))
    tokens = network(torch.zeros(1, 16, 8, 3), torch.zeros(1, 16, 3))
    assert torch.isfinite(tokens).all()
