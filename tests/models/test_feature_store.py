"""Training features on disk: what is stored, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.checkpoints import CheckpointError
from models.uff.feature_store import (
    LARGEST_COUNT,
    FeatureStoreWriter,
    StoreMeta,
    read_manifest,
    read_sample,
    to_storage,
)
from models.uff.pairing import paired_rgb
from tests.mutants import mutants
from tests.synthetic_features import META, toy_patches, write_toy_store
from utils.files import TEMPORARY_PREFIX
from utils.structures import Patches

RELEASED_BYTES = 3136 * 1920 * 4


def _save(folder, i, patches, meta=META, class_name="bagel"):
    with FeatureStoreWriter.open(folder, meta) as store:
        return store.save(class_name, i, patches)


def _change_manifest(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    stored = read_sample(_save(tmp_path, 0, patches, meta), meta)
    dense = patches["xyz"].dense()
    occupied = (dense != 0).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(stored.xyz_row, occupied)
    assert torch.equal(stored.xyz, dense[occupied].to(stored.xyz.dtype))
    assert torch.equal(stored.rgb, patches["rgb"].rows.to(stored.rgb.dtype))
    assert str(stored.xyz.dtype) == f"torch.{dtype}"


def test_a_sample_takes_less_than_an_eighth_of_the_release(tmp_path):
    meta = StoreMeta("toys", "vit", "points", rgb_dim=768, xyz_dim=1152, rgb_side=28, xyz_side=56)
    path = _save(tmp_path, 0, toy_patches(0, meta, empty_share=0.78), meta)
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
        _save(tmp_path, 0, patches)
    assert {path.name for path in tmp_path.iterdir()} == {"index.json", ".saving"}


def test_patches_of_other_sizes_are_refused(tmp_path):
    patches = toy_patches(0)
    patches["rgb"] = Patches(torch.ones(16, 8), torch.arange(16), 4)
    with pytest.raises(ValueError, match=r"\(4, 8, 8, 32\)"):
        _save(tmp_path, 0, patches)


def test_the_manifest_says_what_the_features_are(tmp_path):
    write_toy_store(tmp_path, 2, "bagel")
    write_toy_store(tmp_path, 1, "rope")
    assert read_manifest(tmp_path) == (META, {"bagel": 2, "rope": 1})
    assert json.loads((tmp_path / "index.json").read_text())["rgb_backbone"] == "toy_vit"


def test_a_class_with_an_unsaved_sample_is_not_entered(tmp_path):
    with FeatureStoreWriter.open(tmp_path, META) as store:
        store.save("bagel", 0, toy_patches(0))
        with pytest.raises(FileNotFoundError, match="bagel_001"):
            store.complete_class("bagel", 2)
    assert read_manifest(tmp_path)[1] == {}


@pytest.mark.parametrize(
    "change",
    [
        {"rgb_backbone": "other"},
        {"pairing": "scrambled"},
        {"extraction": {"batchnorm": "running"}},
        {"dataset": "other parts with classes of the same names"},
    ],
)
def test_features_of_another_kind_are_refused_before_any_is_written(tmp_path, change):
    write_toy_store(tmp_path, 1)
    with pytest.raises(ValueError, match="--save_feature_path"):
        _save(tmp_path, 0, toy_patches(0), replace(META, **change))
    assert read_manifest(tmp_path) == (META, {"bagel": 1})


def test_a_folder_of_the_release_is_not_written_to(tmp_path):
    (tmp_path / "bagel0.pt").touch()
    with pytest.raises(ValueError, match=r"\.pt features"):
        _save(tmp_path, 0, toy_patches(0))
    assert not list(tmp_path.glob("*.npz"))


def test_names_of_classes_that_end_in_digits_do_not_collide(tmp_path):
    first = _save(tmp_path, 10, toy_patches(0), class_name="part")
    assert first != _save(tmp_path, 0, toy_patches(1), class_name="part1")


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"format": "other"}'])
def test_a_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match="is no manifest"):
        read_manifest(tmp_path)


def test_damaged_files_are_named(tmp_path):
    path = write_toy_store(tmp_path, 1) / "bagel_000.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for bad in (content, content[: len(content) // 2], b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"bagel_000\.npz: not a readable \.npz file"):
            read_sample(path, META)
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "plain.npy").replace(path)
    with pytest.raises(CheckpointError, match=r"bagel_000\.npz: not a readable \.npz file"):
        read_sample(path, META)


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_mutants_of_a_features_file_are_read_or_are_one_error(tmp_path, compress):
    path = write_toy_store(tmp_path, 1, rgb_dim=2, xyz_dim=3) / "bagel_000.npz"
    meta = replace(META, rgb_dim=2, xyz_dim=3)
    with np.load(path) as file:
        compress(path, **file)
    errors: list[str] = []
    for mutant in mutants(path.read_bytes(), 300):
        path.write_bytes(mutant)
        try:
            sample = read_sample(path, meta)
        except CheckpointError as error:
            errors.append(str(error))
        else:
            assert sample.rgb.shape == (16, 2)
    assert all(str(path) in error for error in errors)
    assert 100 < len(errors) <= 300


def test_an_archive_that_claims_more_than_the_manifest_is_refused_before_it_is_inflated(
    tmp_path, monkeypatch
):
    path = write_toy_store(tmp_path, 1) / "bagel_000.npz"
    np.savez_compressed(
        path, rgb=np.zeros((16, 16), "f2"), xyz=np.zeros((2**22, 32), "f2"), xyz_row=np.zeros(2**22, "i4")
    )
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the arrays are loaded"))
    with pytest.raises(CheckpointError, match=r"xyz \(4194304, 32\).*xyz up to \(64, 32\)"):
        read_sample(path, META)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (np.array([3, 3, 5], "i4"), "ascend"),
        (np.array([-1, 0, 1], "i4"), "ascend"),
        (np.array([0, 1, 10**6], "i4"), "ascend"),
        (np.array([0.0, 1.0, 2.0]), "xyz_row .* float64"),
        (np.array([[0, 1, 2]], "i4"), "xyz_row "),
    ],
)
def test_rows_that_no_writer_has_written_are_damage(tmp_path, row, reason):
    path = _save(tmp_path, 0, toy_patches(0))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"xyz": arrays["xyz"][:3], "xyz_row": row})
    with pytest.raises(CheckpointError, match=reason):
        read_sample(path, META)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a"]},
        {"classes": {"a": None}},
        {"classes": {"a": True}},
        {"classes": {"a": LARGEST_COUNT + 1}},
        {"classes": {"../a": 1}},
        {"classes": {"a/b": 1}},
        {"classes": {"..": 1}},
        {"classes": {"a\nb": 1}},
        {"classes": {"": 1}},
        {"rgb_side": 0},
        {"rgb_side": 3},
        {"xyz_dim": 10**12},
        {"xyz_dim": "32"},
        {"pairing": "foo"},
        {"pairing": ["colocated"]},
        {"feature_dtype": "float8"},
        {"random_weights": "no"},
        {"rgb_backbone": 3},
        {"extraction": ["batchnorm"]},
        {"format": "m3dm-uff-features-1"},
        {"more": 1},
    ],
)
def test_a_manifest_that_no_writer_has_written_is_refused_with_its_path(tmp_path, change):
    write_toy_store(tmp_path, 1)
    _change_manifest(tmp_path, **change)
    with pytest.raises(ValueError, match=r"index\.json: is no manifest"):
        read_manifest(tmp_path)


def test_a_manifest_of_a_thousand_brackets_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json: is no manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../bagel", "a/b", "", ".hidden", "a\nb"])
def test_class_names_that_lead_out_of_the_folder_are_not_saved(tmp_path, name):
    with pytest.raises(ValueError, match="no name of a class"):
        _save(tmp_path / "store", 0, toy_patches(0), class_name=name)
    assert not list(tmp_path.rglob("*.npz"))


def test_one_writer_at_a_time_has_the_folder(tmp_path):
    with (
        FeatureStoreWriter.open(tmp_path, META),
        pytest.raises(OSError, match="another run is saving features there"),
        FeatureStoreWriter.open(tmp_path, META),
    ):
        pass
    write_toy_store(tmp_path, 1)
    assert read_manifest(tmp_path)[1] == {"bagel": 1}


def test_classes_entered_by_others_meanwhile_stay(tmp_path):
    with FeatureStoreWriter.open(tmp_path, META) as store:
        store.save("bagel", 0, toy_patches(0))
        _change_manifest(tmp_path, classes={"rope": 5})
        store.complete_class("bagel", 1)
    assert read_manifest(tmp_path)[1] == {"rope": 5, "bagel": 1}


def test_a_class_that_is_saved_anew_is_withdrawn_until_it_is_complete(tmp_path):
    write_toy_store(tmp_path, 2, "bagel")
    write_toy_store(tmp_path, 1, "rope")
    with FeatureStoreWriter.open(tmp_path, META) as store:
        store.save("bagel", 0, toy_patches(3))
        assert not store.has_class("bagel")
        assert store.has_class("rope")
        (tmp_path / "rope_000.npz").unlink()
        assert not store.has_class("rope")


def test_what_a_killed_run_left_half_written_is_swept(tmp_path):
    write_toy_store(tmp_path, 1)
    for suffix in (".npz", ".json"):
        (tmp_path / f"{TEMPORARY_PREFIX}abcd1234{suffix}").write_bytes(b"half")
    write_toy_store(tmp_path, 1, "rope")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".index.lock",
        ".saving",
        "bagel_000.npz",
        "index.json",
        "rope_000.npz",
    ]
