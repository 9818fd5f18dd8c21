import numpy as np
import pytest
import tifffile

from utils.annotate import color_bar, colored, outline, with_caption
from utils.image_files import read_rgb
from utils.pictures import (
    CELL_SIDE,
    MOST_CELLS,
    TRUTH_COLOR,
    MapScale,
    resize_map,
    sheet_cell,
    sheet_order,
    thumbnail,
    write_contact_sheet,
    write_map,
    write_picture,
)

HEIGHT, WIDTH = 6, 9
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[2:4, 2:7] = True


@pytest.fixture
def picture(tmp_path):
    """Writes a picture of a map and returns its three parts."""

    def write(anomaly_map, limits=(0.0, 1.0), image=IMAGE):
        write_picture(tmp_path / "sub" / "a.png", image, MASK, anomaly_map, MapScale(limits), "score 1")
        return np.split(read_rgb(tmp_path / "sub" / "a.png")[:HEIGHT, : 3 * WIDTH], 3, axis=1)

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
    np.testing.assert_array_equal(truth[MASK], IMAGE[MASK])
    line = (truth == TRUTH_COLOR).all(axis=2)
    np.testing.assert_array_equal(line, outline(MASK, 2))
    np.testing.assert_array_equal(truth[~line], IMAGE[~line])
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


def test_outline_lies_outside_and_touches_the_inside():
    inside = np.zeros((7, 7), dtype=bool)
    inside[3, 3] = True
    around = np.zeros_like(inside)
    around[[2, 4, 3, 3], [3, 3, 2, 4]] = True
    np.testing.assert_array_equal(outline(inside, 1), around)
    assert outline(inside, 2).sum() == 12
    assert not outline(np.zeros_like(inside), 3).any()
    assert not outline(np.ones_like(inside), 3).any()


def test_color_bar_runs_from_the_last_color_to_the_first():
    bar = color_bar(300, (0.0, 1.0))
    ends = colored(np.array([[1.0], [0.0]]), (0.0, 1.0))[:, 0]
    np.testing.assert_array_equal(bar[[0, -1], 6], ends)
    assert len(np.unique(bar[:, 6], axis=0)) > 200


def test_caption_widens_a_narrow_picture_and_takes_any_letters():
    narrow = np.zeros((20, 30, 3), np.uint8)
    captioned = with_caption(narrow, "hole/000: score 0.1\nи 孔", 10)
    assert captioned.shape[1] > 100
    np.testing.assert_array_equal(captioned[:20, :30], narrow)
    assert (captioned[20:] < 100).any()


@pytest.mark.parametrize(
    ("shape", "small"), [((40, 80), (56, 112)), ((80, 40), (112, 56)), ((2, 400), (1, 112))]
)
def test_thumbnail_keeps_the_images_proportions(shape, small):
    image = np.zeros((*shape, 3), np.uint8)
    for picture in thumbnail(
        image, np.ones((9, 9), bool), np.ones((5, 5), np.float32), MapScale((0, 1)), 112
    ):
        assert picture.shape == (*small, 3)


def test_contact_sheet_has_the_highest_score_first_and_room_for_all(tmp_path):
    assert sheet_order(np.array([1.0, 3.0, 2.0])) == [1, 2, 0]
    many = sheet_order(np.arange(1000.0))
    assert len(many) == MOST_CELLS
    assert (many[0], many[-1]) == (999, 0)
    cells = [
        sheet_cell(np.zeros((CELL_SIDE, 40, 3), np.uint8), label, "x" * 99) for label in [None, 0, 1] * 4
    ]
    write_contact_sheet(tmp_path / "sheet.png", cells)
    assert read_rgb(tmp_path / "sheet.png").shape == (2 * cells[0].shape[0], 10 * cells[0].shape[1], 3)
