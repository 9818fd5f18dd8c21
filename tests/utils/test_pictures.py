import numpy as np
import pytest
import tifffile

from utils.image_files import read_rgb
from utils.pictures import resize_map, write_map, write_picture

HEIGHT, WIDTH = 6, 9
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MASK = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5 == 0


@pytest.fixture
def picture(tmp_path):
    """Writes a picture of a map and returns its three parts."""

    def write(anomaly_map, limits=(0.0, 1.0), image=IMAGE):
        write_picture(tmp_path / "sub" / "a.png", image, MASK, anomaly_map, limits)
        return np.split(read_rgb(tmp_path / "sub" / "a.png"), 3, axis=1)

    return write


def _bilinear(values, size, axis):
    """Along one axis, pixel centres at halves, the outermost pixels repeated beyond the edges."""
    count = values.shape[axis]
    place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    return np.apply_along_axis(lambda line: np.interp(place, np.arange(count), line), axis, values)


@pytest.mark.parametrize("shape", [(8, 6), (9, 4), (3, 5)])
def test_map_is_resized_bilinear_without_aligned_corners(shape):
    small = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    expected = _bilinear(_bilinear(small, shape[0], 0), shape[1], 1)
    np.testing.assert_allclose(resize_map(small, shape), expected, atol=1e-6)
    assert resize_map(np.array([[0.0, 1.0]]), (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]


def test_map_at_its_own_size_stays_as_it_is():
    small = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    np.testing.assert_array_equal(resize_map(small, (4, 4)), small)


def test_map_file_is_float32_and_reads_back_equal(tmp_path):
    anomaly_map = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH))
    write_map(tmp_path / "sub" / "a.tiff", anomaly_map)
    read = tifffile.imread(tmp_path / "sub" / "a.tiff")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, anomaly_map.astype(np.float32))


def test_three_channels_wide_map_is_not_taken_for_a_colour_image(tmp_path):
    write_map(tmp_path / "a.tiff", np.ones((5, 3), np.float32))
    assert tifffile.imread(tmp_path / "a.tiff").shape == (5, 3)


def test_picture_shows_image_truth_and_map_side_by_side(picture):
    image, truth, overlay = picture(MASK.astype(np.float32))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(truth, np.repeat(MASK[..., None], 3, axis=2) * np.uint8(255))
    red_minus_blue = (overlay.astype(int) - IMAGE // 2)[..., 0] - (overlay.astype(int) - IMAGE // 2)[..., 2]
    assert (red_minus_blue[MASK] > 0).all()
    assert (red_minus_blue[~MASK] < 0).all()


def test_scores_beyond_the_limits_get_the_outermost_colours(picture):
    ramp = np.linspace(-1, 2, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    for cut, whole in zip(picture(ramp), picture(np.clip(ramp, 0, 1)), strict=True):
        np.testing.assert_array_equal(cut, whole)


def test_constant_map_has_one_colour(picture):
    constant, black = np.full((HEIGHT, WIDTH), 0.7, np.float32), np.zeros_like(IMAGE)
    _, _, overlay = picture(constant, limits=(0.7, 0.7), image=black)
    assert len(np.unique(overlay.reshape(-1, 3), axis=0)) == 1
    assert overlay.any()
