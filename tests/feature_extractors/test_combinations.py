"""Every backbone in every method, at a small size: nothing hard-codes 1152, 768 or 28 x 28."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from models.backbones import RGB_BACKBONES
from tests.conftest import write_class
from tests.reference.formula import fill
from utils.resources import sha256_of

SMALL = "--img_size 32 --num_group 16 --group_size 8 --f_coreset 0.5 --device cpu --num_workers 0".split()
VIT_S = ["--rgb_backbone_name", "vit_small_patch8_224_dino"]
METHOD_FLAGS = {
    "Point_MAE": [],
    "Fusion": ["--use_uff"],
    "DINO+Point_MAE": [],
    "DINO+Point_MAE+add": [],
    "DINO+Point_MAE+Fusion": ["--use_uff"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_class(root, "bagel", train=3, good=1, bad=1)
    return root


def _run(data: Path, results: Path, *flags: str) -> dict:
    command = ["--dataset_path", str(data), "--results_dir", str(results), *SMALL, *flags]
    assert main.main(command) == 0
    record = json.loads((results / "results.json").read_text())
    with (results / "scores" / "bagel.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(scores) == 2
    assert all(math.isfinite(score) for score in scores)
    return record


@pytest.mark.parametrize("xyz", ["Point_MAE", "Point_Bert", "FPFH"])
@pytest.mark.parametrize("method", METHOD_FLAGS)
def test_xyz_backbone_works_in_method_beside_vit_s(data, tmp_path, method, xyz):
    flags = ["--method_name", method, "--xyz_backbone_name", xyz, "--random_weights", *VIT_S]
    record = _run(data, tmp_path, *flags, *METHOD_FLAGS[method])
    assert record["settings"]["xyz_backbone_name"] == xyz
    assert record["random_weights"] is True
    if xyz == "FPFH":
        assert record["weights"]["xyz"] == "none needed"


def test_vit_b_works_beside_fpfh(data, tmp_path):
    flags = ["--method_name", "DINO+Point_MAE+Fusion", "--use_uff", "--xyz_backbone_name", "FPFH"]
    record = _run(data, tmp_path, *flags, "--random_weights")
    assert record["classes"]["bagel"]["image_rocauc"] is not None


def test_fpfh_alone_needs_no_weights_and_says_so(data, tmp_path):
    record = _run(data, tmp_path, "--method_name", "FPFH", "--checkpoint_dir", str(tmp_path / "none"))
    assert record["random_weights"] is False
    assert record["settings"]["xyz_backbone_name"] == "FPFH"


@pytest.mark.parametrize("size", [40, 64])
def test_other_image_sizes_work_throughout(data, tmp_path, size):
    flags = ["--method_name", "DINO+Point_MAE+Fusion", "--use_uff", "--random_weights", *VIT_S]
    record = _run(data, tmp_path, *flags, "--save_preds", "--img_size", str(size))
    assert record["settings"]["img_size"] == size
    assert (tmp_path / "pred_maps" / "bagel" / "test" / "hole" / "000.tiff").exists()


def test_features_of_fpfh_and_vit_s_train_a_block_that_the_method_then_uses(data, tmp_path):
    import fusion_pretrain

    backbones = ["--xyz_backbone_name", "FPFH", "--random_weights", *VIT_S]
    store, out = tmp_path / "patch_lib", tmp_path / "uff"
    save = ["--save_feature", "--save_feature_path", str(store)]
    _run(data, tmp_path / "two", "--method_name", "DINO+Point_MAE", *save, *backbones)
    flags = ["--data_path", str(store), "--output_dir", str(out), "--log_dir", str(out), "--epochs", "1"]
    fusion_pretrain.main(
        fusion_pretrain.get_args_parser().parse_args([*flags, "--batch_size", "2", "--num_workers", "0"])
    )
    path = out / "checkpoint-0.pth"
    fusion = ["--use_uff", "--fusion_module_path", str(path)]
    record = _run(data, tmp_path / "one", "--method_name", "Fusion", *fusion, *backbones)
    assert record["weights"]["fusion"] == f"{path.name} sha256:{sha256_of(path)}"


@pytest.fixture(scope="module")
def supervised_vit(tmp_path_factory) -> Path:
    """Formula-made supervised ViT-B/8 files in the original .npz layout, one content under both names."""
    folder = tmp_path_factory.mktemp("weights")
    first, second = (RGB_BACKBONES[name].download.path_in(folder) for name in SUPERVISED)
    np.savez(first, **_as_jax_archive(fill(RGB_BACKBONES[SUPERVISED[0]].build(224, None).vit)))
    second.hardlink_to(first)
    return folder


SUPERVISED = ("vit_base_patch8_224", "vit_base_patch8_224_in21k")


def _as_jax_archive(model) -> dict[str, np.ndarray]:
    """The model's encoder under the names and in the shapes of the augreg files."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    dim, heads = model.embed_dim, model.blocks[0].attn.num_heads
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(len(model.blocks)):
        block, prefix = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        weights = np.split(state[f"{block}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{block}.attn.qkv.bias"], 3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}/{part}/kernel"] = weight.T.reshape(dim, heads, -1)
            arrays[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{block}.attn.proj.weight"].T.reshape(heads, -1, dim)
        arrays[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
        for dense, layer in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            arrays[f"{prefix}/MlpBlock_3/{dense}/kernel"] = state[f"{block}.mlp.{layer}.weight"].T
            arrays[f"{prefix}/MlpBlock_3/{dense}/bias"] = state[f"{block}.mlp.{layer}.bias"]
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{prefix}/{theirs}/scale"] = state[f"{block}.{ours}.weight"]
            arrays[f"{prefix}/{theirs}/bias"] = state[f"{block}.{ours}.bias"]
    return arrays


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_vit_gives_the_features_of_timms_own_loading(supervised_vit, name):
    import timm

    row = RGB_BACKBONES[name]
    path = row.download.path_in(supervised_vit)
    theirs = timm.create_model(row.variant, num_classes=0, checkpoint_path=str(path)).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.forward_features(images)[:, 1:]
        found = row.build(224, path)(images)
    assert torch.equal(found, expected)


def test_supervised_vit_and_point_bert_work_end_to_end(supervised_vit, data, tmp_path):
    from models.point_transformer.encoder import build_point_transformer

    state = fill(build_point_transformer("Point_Bert")).state_dict()
    base = {f"module.transformer_q.{key}": value for key, value in state.items()}
    torch.save({"base_model": base, "epoch": 300}, supervised_vit / "Point-BERT.pth")
    flags = ["--rgb_backbone_name", SUPERVISED[1], "--xyz_backbone_name", "Point_Bert"]
    weights = ["--checkpoint_dir", str(supervised_vit)]
    record = _run(data, tmp_path, "--method_name", "DINO+Point_MAE", *flags, *weights)
    assert record["random_weights"] is False
    assert all("sha256" in source for source in record["weights"].values())
