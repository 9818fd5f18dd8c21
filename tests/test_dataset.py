import os

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import (
    DATASETS,
    DatasetError,
    existing_points,
    find_classes,
    list_samples,
    load_sample,
    normalised_image,
    resize_nearest,
    resized_mask,
)
from tests.conftest import write_class
from utils.image_files import read_rgb, read_xyz, write_png, write_xyz


@pytest.mark.parametrize("side", [224, 400, 500, 800, 900, 337])
def test_nearest_resize_follows_torchs_index_rule(side):
    image = np.random.default_rng(0).random((side, side + 3, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None], size=224)
    np.testing.assert_array_equal(resize_nearest(image, 224), expected[0].permute(1, 2, 0).numpy())


def test_image_is_resized_bicubic_and_normalised_as_torchvision_does():
    from torchvision import transforms

    rgb = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    resize = transforms.Resize((64, 64), transforms.InterpolationMode.BICUBIC)
    norm = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = norm(transforms.ToTensor()(resize(Image.fromarray(rgb))))
    np.testing.assert_allclose(normalised_image(rgb, 64), expected.numpy(), atol=1e-6)


def test_a_point_exists_where_all_three_coordinates_are_non_zero():
    xyz = np.array([[[1, 1, 1], [0, 1, 1]], [[0, 0, 0], [1, 2, 3]]], dtype=np.float32)
    points, pixel_index = existing_points(xyz)
    assert pixel_index.tolist() == [0, 3]
    assert points.tolist() == [[1, 1, 1], [1, 2, 3]]


def test_test_samples_come_by_defect_name_then_file_name(tiny_dataset):
    samples = list_samples(tiny_dataset / "bagel", "test")
    assert [s.path for s in samples] == [
        "test/good/rgb/000.png",
        "test/good/rgb/001.png",
        "test/hole/rgb/000.png",
        "test/hole/rgb/001.png",
    ]
    assert [s.label for s in samples] == [0, 0, 1, 1]


def test_masks_of_good_samples_are_empty_and_codes_of_defects_count(tiny_dataset):
    good, bad = (resized_mask(list_samples(tiny_dataset / "bagel", "test")[i], 224) for i in (0, 2))
    assert not good.any()
    assert 0.01 < bad.mean() < 0.05


def test_good_samples_need_no_gt_folder(tiny_dataset):
    for file in (tiny_dataset / "bagel/test/good/gt").iterdir():
        file.unlink()
    assert len(list_samples(tiny_dataset / "bagel", "test")) == 4


@pytest.mark.parametrize("lost", ["rgb/001.png", "xyz/000.tiff", "gt/000.png"])
def test_files_that_do_not_pair_are_an_error_that_names_them(tiny_dataset, lost):
    (tiny_dataset / "bagel/test/hole" / lost).unlink()
    with pytest.raises(DatasetError, match=rf"hole: {lost[:3].rstrip('/')}/ lacks {lost.split('/')[1][:3]}"):
        list_samples(tiny_dataset / "bagel", "test")


def test_class_without_images_is_an_error_that_names_the_folder(tiny_dataset):
    (tiny_dataset / "carrot" / "train" / "good" / "rgb").mkdir(parents=True)
    with pytest.raises(DatasetError, match="carrot/train: no sample"):
        list_samples(tiny_dataset / "carrot", "train")


def test_classes_default_to_those_present_and_unknown_ones_are_named(tiny_dataset, tmp_path):
    write_class(tiny_dataset, "my_part")
    assert find_classes(tiny_dataset, DATASETS["mvtec3d"], None) == ["bagel"]
    assert find_classes(tiny_dataset, DATASETS["mvtec3d"], ["my_part", "bagel"]) == ["my_part", "bagel"]
    with pytest.raises(DatasetError, match=r"no class folder bagle; classes there: bagel, my_part"):
        find_classes(tiny_dataset, DATASETS["mvtec3d"], ["bagle"])
    with pytest.raises(DatasetError, match="no class of the --dataset_type"):
        find_classes(tiny_dataset, DATASETS["eyecandies"], None)
    with pytest.raises(DatasetError, match="no such folder"):
        find_classes(tmp_path / "nowhere", DATASETS["mvtec3d"], None)


def test_nan_infinite_and_absurdly_far_points_count_as_not_measured_and_are_reported(tiny_dataset):
    files = list_samples(tiny_dataset / "bagel", "train")[0]
    before = load_sample(files.rgb, files.xyz, 40)
    xyz = read_xyz(files.xyz)
    xyz[20, 20, 1], xyz[20, 21, 2], xyz[20, 22, 0] = np.nan, np.inf, -1e30
    write_xyz(files.xyz, xyz)
    sample = load_sample(files.rgb, files.xyz, 40)
    assert len(before.points) - len(sample.points) == 3
    assert np.abs(sample.points).max() < 1
    assert sample.remarks == ("3 pixels with NaN, infinite or absurdly far points count as not measured",)


def test_image_and_cloud_of_different_sizes_are_refused(tiny_dataset):
    files = list_samples(tiny_dataset / "bagel", "train")[0]
    write_png(files.rgb, np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000\.tiff: has 40x40 pixels, .*000\.png has 30x20"):
        load_sample(files.rgb, files.xyz, 224)


def test_arrays_give_what_their_files_give(tiny_dataset):
    files = list_samples(tiny_dataset / "bagel", "train")[0]
    from_files = load_sample(str(files.rgb), files.xyz, 40)
    from_arrays = load_sample(read_rgb(files.rgb), read_xyz(files.xyz).astype(np.float64), 40)
    for name in ("image", "points", "pixel_index"):
        np.testing.assert_array_equal(getattr(from_files, name), getattr(from_arrays, name))


@pytest.mark.parametrize(
    ("rgb", "xyz", "message"),
    [
        (
            np.zeros((4, 4, 3)),
            np.zeros((4, 4, 3)),
            "the rgb array: has shape .* of float64, expected .* of uint8",
        ),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), "the xyz array: has shape"),
        (
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((4, 5, 3)),
            "the xyz array: has 5x4 pixels, the rgb array has 4x4",
        ),
    ],
)
def test_arrays_that_are_no_view_of_a_part_are_refused(rgb, xyz, message):
    with pytest.raises(ValueError, match=message):
        load_sample(rgb, xyz, 32)


@pytest.mark.real_data
def test_real_sample_becomes_the_networks_input_of_the_released_code(large_goldens):
    golden = np.load(large_goldens / "real.npz")
    root = large_goldens / "cable_gland_preprocessed"
    wanted = str(golden["stage.vit_base_patch8_224_dino.Point_MAE.path"])
    files = next(f for f in list_samples(root / "cable_gland", "test") if f.path == wanted)
    sample = load_sample(files.rgb, files.xyz, 224)
    np.testing.assert_allclose(sample.image, golden["stage.image"].astype(np.float32), atol=2e-3)
    np.testing.assert_array_equal(sample.pixel_index, golden["stage.pixel_index"])


@pytest.mark.parametrize("name", ["rgb/009.PNG", "rgb/009.jpg", "xyz/009.tif"])
def test_an_image_of_another_ending_is_not_passed_over(tiny_dataset, name):
    stray = tiny_dataset / "bagel/train/good" / name
    stray.write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{stray.name}: images here must end in"):
        list_samples(tiny_dataset / "bagel", "train")


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
@pytest.mark.parametrize("name", ["ba\ngel", "ba\tgel", "ba\x1bgel"])
def test_a_class_whose_name_is_not_one_line_is_refused(tmp_path, name):
    write_class(tmp_path, name)
    with pytest.raises(DatasetError, match="rename it") as refused:
        find_classes(tmp_path, DATASETS["mvtec3d"], [name])
    assert str(refused.value).isprintable()
