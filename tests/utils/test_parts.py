"""Which files make a part, and that every other one is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from utils.formats.cameras import read_camera
from utils.formats.clouds import CLOUD_FORMATS, load_cloud
from utils.formats.images import load_image, load_mask
from utils.formats.organised import CloudOptions
from utils.formats.parts import Found, parts_anywhere, parts_by_pattern
from utils.image_files import SampleFileError

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes and links of this kind")


def found_in(root: Path, *names: str) -> Found:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return parts_anywhere(root)


def names_of(found: Found) -> list[str]:
    return [part.name for part in found.parts]


def test_parts_lie_side_by_side_or_in_folders_of_their_kind(tmp_path: Path) -> None:
    found = found_in(tmp_path, "a.png", "a.tiff", "deep/er/rgb/b.jpg", "deep/er/xyz/b.ply", "colored/c.ply")
    assert names_of(found) == ["a", "colored/c", "deep/er/b"]
    assert [part.rgb and part.rgb.name for part in found.parts] == ["a.png", None, "b.jpg"]
    assert found.problems == []


def test_files_beside_the_folders_of_a_kind_are_named(tmp_path: Path) -> None:
    found = found_in(tmp_path, "rgb/a.png", "xyz/a.tiff", "b.png", "b.tiff", "camera.json", ".hidden.png")
    assert names_of(found) == ["a"]
    assert [line.split(":")[0] for line in found.problems] == [
        str(tmp_path / "b.png"),
        str(tmp_path / "b.tiff"),
    ]


@pytest.mark.parametrize("files", [("a.png", "a.tif", "a.tiff"), ("a.jpg", "a.png", "a.ply")])
def test_of_two_clouds_or_images_of_one_name_none_is_taken(tmp_path: Path, files: tuple[str, ...]) -> None:
    found = found_in(tmp_path, *files, "b.png", "b.ply")
    assert names_of(found) == ["b"]
    (line,) = found.problems
    assert "have one name; keep one of them" in line
    assert sum(name in line for name in files) == 2


@posix
def test_a_pipe_and_a_broken_link_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ply")
    (tmp_path / "b.ply").symlink_to(tmp_path / "nowhere")
    found = found_in(tmp_path, "c.ply")
    assert names_of(found) == ["c"]
    first, second = found.problems
    assert first.startswith(f"{tmp_path / 'a.ply'}: is no regular file")
    assert second.startswith(f"{tmp_path / 'b.ply'}: can't be read")


LISTERS = [(os, "scandir"), (Path, "iterdir")]  # of the folders, then of the files in each


def refuse(monkeypatch: pytest.MonkeyPatch, lister: tuple[object, str], error: OSError) -> None:
    """Let the lister fail at a folder of the name odd."""
    real = getattr(*lister)

    def listed(folder):
        if Path(folder).name == "odd":
            error.filename = str(folder)
            raise error
        return real(folder)

    monkeypatch.setattr(*lister, listed)


@pytest.mark.parametrize("lister", LISTERS)
def test_a_folder_that_vanishes_meanwhile_is_no_problem(tmp_path: Path, monkeypatch, lister) -> None:
    refuse(monkeypatch, lister, FileNotFoundError(2, "No such file or directory"))
    found = found_in(tmp_path, "a.png", "a.tiff", "odd/b.txt", "z/c.ply")
    assert names_of(found) == ["a", "z/c"]
    assert found.problems == []


def test_a_folder_that_can_not_be_listed_is_named_once(tmp_path: Path, monkeypatch) -> None:
    for lister in LISTERS:
        refuse(monkeypatch, lister, PermissionError(13, "Permission denied"))
    found = found_in(tmp_path, "a.png", "a.tiff", "odd/b.png")
    assert names_of(found) == ["a"]
    assert found.problems == [
        f"{tmp_path / 'odd'}: can't be listed (Permission denied); check its permissions"
    ]


def test_patterns_name_files_below_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--xyz_pattern .*must name files by their place in --input"):
        parts_by_pattern(tmp_path, {"xyz": f"{tmp_path.anchor}{{stem}}"}, Path())


@posix
@pytest.mark.parametrize("suffix", CLOUD_FORMATS)
def test_a_pipe_is_no_cloud(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(SampleFileError, match="is no regular file"):
        load_cloud(tmp_path / f"a{suffix}", CloudOptions())


@posix
@pytest.mark.parametrize("read", [load_image, load_mask, read_camera])
def test_a_pipe_is_no_image_and_no_camera(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(SampleFileError, match="is no regular file"):
        read(tmp_path / "a.png")
