"""Training features on disk: what is stored, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.uff.feature_store import (
    FeatureStoreWriter,
    StoreMeta,
    paired_rgb,
    read_index,
    read_sample,
    to_storage,
)
from tests.synthetic_features import META, toy_patches, write_toy_store
from utils.structures import Patches

RELEASED_BYTES = 3136 * 1920 * 4


def test_pairings_are_those_of_the_released_code(goldens):
    golden = np.load(goldens / "pairing.npz")
    assert np.array_equal(paired_rgb("colocated", 28, 56), golden["rgb56"])
    assert np.array_equal(paired_rgb("scrambled", 28, 56), golden["released_saved"])


def test_grids_without_a_whole_ratio_are_refused():
    with pytest.raises(ValueError, match="no multiple"):
        paired_rgb("colocated", 28, 50)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_sample_comes_back_without_its_empty_xyz_rows(tmp_path, dtype):
    meta, patches = replace(META, feature_dtype=dtype), toy_patches(0)
    stored = read_sample(FeatureStoreWriter(tmp_path, meta=meta).save("bagel", 0, patches), meta)
    dense = patches["xyz"].dense()
    occupied = (dense != 0).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(stored.xyz_row, occupied)
    assert torch.equal(stored.xyz, dense[occupied].to(stored.xyz.dtype))
    assert torch.equal(stored.rgb, patches["rgb"].rows.to(stored.rgb.dtype))
    assert str(stored.xyz.dtype) == f"torch.{dtype}"


def test_a_sample_takes_less_than_an_eighth_of_the_release(tmp_path):
    meta = StoreMeta("vit", "points", rgb_dim=768, xyz_dim=1152, rgb_side=28, xyz_side=56)
    path = FeatureStoreWriter(tmp_path, meta=meta).save("bagel", 0, toy_patches(0, meta, empty_share=0.78))
    assert path.stat().st_size < RELEASED_BYTES / 8


def test_what_is_not_zero_stays_so_in_float16(tmp_path):
    tiny = torch.tensor([[1e-9, -1e-12, 0.0, 1e-4]])
    stored = to_storage(tiny, "float16", tmp_path)
    assert np.array_equal(np.sign(stored), np.sign(tiny.numpy()))
    assert np.abs(stored - tiny.numpy()).max() < 2**-23


@pytest.mark.parametrize(("value", "remedy"), [(float("nan"), "NaN"), (1e5, "--feature_dtype float32")])
def test_values_that_cannot_be_stored_are_refused(tmp_path, value, remedy):
    patches = toy_patches(0)
    patches["rgb"].rows[0, 0] = value
    with pytest.raises(ValueError, match=remedy):
        FeatureStoreWriter(tmp_path, meta=META).save("bagel", 0, patches)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_patches_of_other_sizes_are_refused(tmp_path):
    patches = toy_patches(0)
    patches["rgb"] = Patches(torch.ones(16, 8), torch.arange(16), 4)
    with pytest.raises(ValueError, match=r"\(4, 8, 8, 32\)"):
        FeatureStoreWriter(tmp_path, meta=META).save("bagel", 0, patches)


def test_the_index_says_what_the_features_are(tmp_path):
    write_toy_store(tmp_path, 2, "bagel")
    write_toy_store(tmp_path, 1, "rope")
    assert read_index(tmp_path) == (META, {"bagel": 2, "rope": 1})
    assert json.loads((tmp_path / "index.json").read_text())["rgb_backbone"] == "toy_vit"


def test_a_class_with_an_unsaved_sample_is_not_entered(tmp_path):
    writer = FeatureStoreWriter(tmp_path, meta=META)
    writer.save("bagel", 0, toy_patches(0))
    with pytest.raises(FileNotFoundError, match="bagel_001"):
        writer.finish_class("bagel", 2)
    assert read_index(tmp_path)[1] == {}


@pytest.mark.parametrize(
    "change", [{"rgb_backbone": "other"}, {"pairing": "scrambled"}, {"protocol": {"batchnorm": "running"}}]
)
def test_features_of_another_kind_are_refused_before_any_is_written(tmp_path, change):
    write_toy_store(tmp_path, 1)
    with pytest.raises(ValueError, match="--save_feature_path"):
        FeatureStoreWriter(tmp_path, meta=replace(META, **change))
    assert read_index(tmp_path) == (META, {"bagel": 1})


def test_a_folder_of_the_release_is_not_written_to(tmp_path):
    (tmp_path / "bagel0.pt").touch()
    with pytest.raises(ValueError, match=r"\.pt features"):
        FeatureStoreWriter(tmp_path, meta=META)


def test_names_of_classes_that_end_in_digits_do_not_collide(tmp_path):
    writer = FeatureStoreWriter(tmp_path, meta=META)
    assert writer.save("part", 10, toy_patches(0)) != writer.save("part1", 0, toy_patches(1))


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"format": "other"}'])
def test_a_foreign_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match="is no index"):
        read_index(tmp_path)


def test_damaged_files_are_named(tmp_path):
    write_toy_store(tmp_path, 1)
    path = tmp_path / "bagel_000.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for bad in (content, content[: len(content) // 2]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"bagel_000\.npz: cannot be read"):
            read_sample(path, META)


@pytest.mark.parametrize(
    ("row", "reason"),
    [([3, 3, 5], "ascend"), ([-1, 0, 1], "ascend"), ([0, 1, 10**6], "ascend"), ([0.0, 1.0, 2.0], "ascend")],
)
def test_rows_that_no_writer_has_written_are_damage(tmp_path, row, reason):
    writer = FeatureStoreWriter(tmp_path, meta=META)
    path = writer.save("bagel", 0, toy_patches(0))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"xyz": arrays["xyz"][:3], "xyz_row": np.array(row)})
    with pytest.raises(ValueError, match=reason):
        read_sample(path, META)


@pytest.mark.parametrize(
    "change",
    [{"classes": ["a"]}, {"classes": {"a": None}}, {"rgb_side": 0}, {"rgb_side": 3}, {"pairing": "foo"}],
)
def test_an_index_that_no_writer_has_written_is_refused_with_its_path(tmp_path, change):
    FeatureStoreWriter(tmp_path, meta=META)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(ValueError, match=r"index\.json: is no index"):
        read_index(tmp_path)
