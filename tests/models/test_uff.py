"""The fusion block and its checkpoints."""

import argparse
import pickle

import numpy as np
import pytest
import torch

from models.checkpoints import CheckpointError
from models.uff.block import FusionBlock, initial_fusion_block, load_fusion_block, random_fusion_block
from models.uff.engine import batch_loss
from models.uff.pairs import PatchPairs
from tests.reference.formula import fill


@pytest.fixture(scope="module")
def formula_block():
    return fill(FusionBlock(1152, 768))


@pytest.fixture(scope="module")
def golden(goldens):
    files = (np.load(goldens / name) for name in ("uff.npz", "uff_xyz.npz", "uff_rgb.npz"))
    return {key: torch.from_numpy(file[key]) for file in files for key in file.files}


def test_fused_patches_are_those_of_the_released_code(formula_block, golden):
    with torch.no_grad():
        fused = formula_block.fuse(golden["xyz"][:, :6], golden["rgb"][:, :6])
    torch.testing.assert_close(fused, golden["fused"], rtol=1e-4, atol=1e-5)


def test_loss_and_gradients_are_those_of_the_released_code(formula_block, golden):
    xyz, rgb = golden["xyz"].flatten(0, 1), golden["rgb"].flatten(0, 1)
    counts = (xyz != 0).all(dim=1)
    assert 0 < counts.sum() < (xyz != 0).any(dim=1).sum()  # patches with some zeros are left out, too
    pairs = PatchPairs(xyz[counts], rgb[counts], torch.arange(int(counts.sum())), ())
    loss = batch_loss(formula_block, pairs)
    loss.backward()
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-5, atol=0)
    for gradient, expected in (
        (formula_block.rgb_head.weight.grad[::16], golden["grad_rgb_head_weight_every_16th"]),
        (formula_block.xyz_mlp.fc1.bias.grad, golden["grad_xyz_fc1_bias"]),
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_equal_seeds_give_equal_blocks_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (initial_fusion_block(8, 4, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["xyz_head.weight"], other["xyz_head.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def _save(path, block, prefix=""):
    state = {prefix + name: value for name, value in block.state_dict().items()}
    torch.save(
        {"model": state, "optimizer": {}, "epoch": 2, "scaler": {}, "args": argparse.Namespace(lr=0.003)},
        path,
    )
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_in_the_released_layout_loads_frozen(tmp_path, prefix):
    block = FusionBlock(12, 8, hidden_ratio=2, head_dim=5)
    loaded = load_fusion_block(_save(tmp_path / "uff.pth", block, prefix), xyz_dim=12, rgb_dim=8)
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), loaded.parameters(), strict=True))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(p.requires_grad for p in random_fusion_block(12, 8, 0).parameters())


def test_a_block_of_other_backbones_names_key_shapes_and_remedy(tmp_path):
    path = _save(tmp_path / "uff.pth", FusionBlock(12, 8))
    with pytest.raises(
        CheckpointError, match=r"uff\.pth: rgb_norm\.weight.*\(8,\).*\(4,\).*--rgb_backbone_name"
    ):
        load_fusion_block(path, xyz_dim=12, rgb_dim=4)


def test_a_missing_key_is_named(tmp_path):
    path = _save(tmp_path / "uff.pth", FusionBlock(12, 8))
    for key in ("xyz_mlp.fc2.bias", "rgb_head.weight"):
        checkpoint = torch.load(path, weights_only=False)
        del checkpoint["model"][key]
        torch.save(checkpoint, tmp_path / "cut.pth")
        with pytest.raises(CheckpointError, match=key):
            load_fusion_block(tmp_path / "cut.pth", xyz_dim=12, rgb_dim=8)


def test_missing_cut_and_foreign_files_are_named(tmp_path):
    path = _save(tmp_path / "uff.pth", FusionBlock(12, 8))
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:1000])
    torch.save({"weights": 1}, tmp_path / "foreign.pth")
    for name in ("nowhere.pth", "cut.pth", "foreign.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_fusion_block(tmp_path / name, xyz_dim=12, rgb_dim=8)


class _Exploit:
    def __reduce__(self):
        return (print, ("code from a checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"model": _Exploit()}, tmp_path / "bad.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        load_fusion_block(tmp_path / "bad.pth", xyz_dim=12, rgb_dim=8)
    assert capsys.readouterr().out == ""
