"""From a folder of features to batches of pairs."""

from dataclasses import replace

import pytest
import torch

from models.checkpoints import CheckpointError
from models.uff.pairing import paired_rgb
from models.uff.pairs import (
    GlobalBatches,
    collate,
    make_loader,
    open_folder,
    read_pairs,
    split_files,
)
from tests.synthetic_features import toy_patches, write_toy_store


@pytest.mark.parametrize("pairing", ["colocated", "scrambled"])
def test_each_xyz_patch_without_a_zero_is_paired_with_its_rgb_patch(tmp_path, pairing):
    folder = open_folder(write_toy_store(tmp_path, 1))
    pairs = read_pairs(folder.files[0], folder, pairing)
    patches = toy_patches(0)
    dense = patches["xyz"].dense()
    counts = (dense != 0).all(dim=1)
    expected_rgb = patches["rgb"].rows[paired_rgb(pairing, 4, 8)][counts]
    assert torch.equal(pairs.xyz, dense[counts].half())
    assert torch.equal(pairs.rgb[pairs.rgb_row], expected_rgb.half())
    assert len(pairs.rgb.unique(dim=0)) == len(pairs.rgb) == len(pairs.rgb_row.unique())


def test_xyz_patches_with_a_single_zero_are_left_out(tmp_path):
    folder = open_folder(write_toy_store(tmp_path, 1))
    sample = folder.read(folder.files[0])
    sample.xyz[3, 5] = 0
    folder = replace(folder, read=lambda path: sample)
    pairs = read_pairs(folder.files[0], folder, "colocated")
    assert len(pairs.xyz) == len(sample.xyz) - 1


@pytest.mark.parametrize("pairing", ["colocated", "scrambled"])
def test_files_of_the_release_are_read_and_put_right(tmp_path, pairing):
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randn(784, 8, generator=generator)
    xyz = torch.randn(3136, 1152, generator=generator) * (torch.rand(3136, 1, generator=generator) < 0.2)
    torch.save(torch.cat([xyz, rgb[paired_rgb(pairing, 28, 56)]], dim=1), tmp_path / "bagel0.pt")
    folder = open_folder(tmp_path)
    pairs = read_pairs(folder.files[0], folder, "colocated")
    occupied = (xyz != 0).all(dim=1)
    assert (folder.meta.rgb_dim, folder.meta.xyz_dim) == (8, 1152)
    assert torch.equal(pairs.xyz, xyz[occupied])
    assert torch.equal(pairs.rgb[pairs.rgb_row], rgb[paired_rgb("colocated", 28, 56)][occupied])


def test_bad_files_of_the_release_are_named(tmp_path):
    torch.save(torch.randn(3136, 1160), tmp_path / "bagel0.pt")
    folder = open_folder(tmp_path)
    with pytest.raises(ValueError, match="neither co-located nor scrambled"):
        folder.read(tmp_path / "bagel0.pt")
    torch.save(torch.zeros(3136, 1154), tmp_path / "bagel1.pt")
    with pytest.raises(ValueError, match=r"bagel1\.pt.*mixed"):
        folder.read(tmp_path / "bagel1.pt")
    (tmp_path / "bagel1.pt").write_bytes((tmp_path / "bagel0.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"bagel1\.pt: not a readable torch file"):
        folder.read(tmp_path / "bagel1.pt")
    for content, found in (
        (torch.zeros(100, 20), r"\(100, 20\)"),
        (torch.zeros(3136, 1160, dtype=torch.int32), "int32"),
        ([1], "list"),
    ):
        torch.save(content, tmp_path / "bagel0.pt")
        with pytest.raises(CheckpointError, match=rf"bagel0\.pt: is no tensor .*{found}"):
            open_folder(tmp_path)


def test_a_missing_and_an_empty_folder_say_what_to_run(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="--save_feature"):
            open_folder(folder)
    with pytest.raises(ValueError, match="--data_path"):
        open_folder("")


def test_a_folder_whose_first_class_was_cut_says_what_to_run(tmp_path):
    write_toy_store(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match="no complete class"):
        open_folder(tmp_path)


def test_both_formats_in_one_folder_are_refused(tmp_path):
    write_toy_store(tmp_path, 1)
    (tmp_path / "bagel0.pt").touch()
    with pytest.raises(ValueError, match="separate them"):
        open_folder(tmp_path)


def test_missing_and_cut_files_are_found_before_the_training(tmp_path):
    path = write_toy_store(tmp_path, 2) / "bagel_001.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"bagel_001\.npz"):
        open_folder(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"bagel_001\.npz"):
        open_folder(tmp_path)


def test_files_that_contradict_the_manifest_are_named(tmp_path):
    write_toy_store(tmp_path / "a", 1)
    write_toy_store(tmp_path / "b", 1, rgb_dim=8)
    (tmp_path / "b" / "bagel_000.npz").replace(tmp_path / "a" / "bagel_000.npz")
    folder = open_folder(tmp_path / "a")
    with pytest.raises(ValueError, match="mixed"):
        folder.read(folder.files[0])


@pytest.mark.parametrize("num_samples", [12, 13, 3])
def test_processes_share_the_batches_of_one_process(num_samples):
    alone = list(GlobalBatches(num_samples, 4, seed=5))
    shared = [list(GlobalBatches(num_samples, 2, 5, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shared, strict=True)] == alone
    assert sorted(i for batch in alone for i in batch) == list(range(num_samples))
    assert len(GlobalBatches(num_samples, 2, 5, 1, 2)) == len(alone)


def test_the_order_follows_seed_and_epoch():
    batches = GlobalBatches(20, 4, seed=0)
    first = list(batches)
    assert list(GlobalBatches(20, 4, seed=0)) == first
    assert list(GlobalBatches(20, 4, seed=1)) != first
    batches.epoch = 1
    assert list(batches) != first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_holds_its_samples_one_after_another(tmp_path, num_workers):
    folder = open_folder(write_toy_store(tmp_path, 5))
    batches = GlobalBatches(5, 2, seed=0)
    loader = make_loader(
        folder, folder.files, "colocated", batches, num_workers=num_workers, pin_memory=False
    )
    for batch, chosen in zip(loader, batches, strict=True):
        samples = [read_pairs(folder.files[i], folder, "colocated") for i in chosen]
        assert torch.equal(batch.xyz, torch.cat([s.xyz for s in samples]))
        assert torch.equal(batch.rgb[batch.rgb_row], torch.cat([s.rgb[s.rgb_row] for s in samples]))
        assert batch.files == tuple(folder.files[i].name for i in chosen)


def test_a_share_without_samples_is_a_batch_without_pairs():
    empty = collate([], xyz_dim=32, rgb_dim=16)
    assert (empty.xyz.shape, empty.rgb.shape, len(empty.rgb_row)) == ((0, 32), (0, 16), 0)


@pytest.mark.parametrize(("count", "share", "held_out"), [(50, 0.1, 5), (4, 0.1, 1), (3, 0.1, 0), (50, 0, 0)])
def test_the_held_out_files_are_a_seeded_share(tmp_path, count, share, held_out):
    files = [tmp_path / str(i) for i in range(count)]
    training, kept = split_files(files, share, 3)
    assert len(kept) == held_out
    assert sorted(training + kept) == sorted(files)
    assert split_files(files, share, 3) == (training, kept)
    with pytest.raises(ValueError, match="--holdout"):
        split_files(files, 1.0, 3)
