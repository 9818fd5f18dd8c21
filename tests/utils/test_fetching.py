"""Fetching from a server on this machine that breaks off, moves, forgets and lies."""

import hashlib
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.file_server import FileServer, Served, serving
from utils.fetching import NOTHING_KNOWN, CutError, Facts, FetchError, check, fetch

CONTENT = np.random.default_rng(0).bytes(1_000_000)
OTHER = np.random.default_rng(1).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KNOWN = Facts(len(CONTENT), SHA256, hashlib.md5(CONTENT).hexdigest()[:6])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def left_by_a_cut(server: FileServer, target: Path, **how: object) -> Path:
    """The part of a first call that received 300,000 bytes; the server then works again, and has forgotten it."""
    server.files["/w"] = Served(CONTENT, cut_after=300_000, **{"ranges": False, **how})  # no way to go on
    with pytest.raises(CutError, match=r"/w: cut after 0\.3 MB of 1\.0 MB; repeat the command to continue"):
        fetch(f"{server.url}/w", target, NOTHING_KNOWN)
    assert not target.exists()
    server.files["/w"] = Served(CONTENT, **how)
    server.asked.clear()
    part = target.with_name("weights.pth.part")
    assert part.read_bytes() == CONTENT[:300_000]
    return part


def test_a_file_arrives_with_its_size_and_checksum_and_nothing_else(server, target):
    server.files["/w"] = Served(CONTENT)
    assert fetch(f"{server.url}/w", target, KNOWN) == Facts(len(CONTENT), SHA256)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_redirect_is_followed(server, target):
    server.files |= {"/here": Served(b"", moved_to="/there"), "/there": Served(CONTENT)}
    fetch(f"{server.url}/here", target, KNOWN)
    assert target.read_bytes() == CONTENT


def test_a_connection_that_breaks_again_and_again_is_taken_up_each_time(server, target):
    server.files["/w"] = Served(CONTENT, cut_after=400_000)
    fetch(f"{server.url}/w", target, NOTHING_KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/w", None), ("/w", "bytes=400000-"), ("/w", "bytes=800000-")]


def test_a_second_call_asks_for_the_rest_alone(server, target):
    left_by_a_cut(server, target)
    fetch(f"{server.url}/w", target, NOTHING_KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/w", "bytes=300000-")]


def test_a_file_that_has_changed_meanwhile_begins_again(server, target):
    left_by_a_cut(server, target)
    server.files["/w"] = Served(OTHER)
    fetch(f"{server.url}/w", target, NOTHING_KNOWN)
    assert target.read_bytes() == OTHER


def test_a_server_that_sends_no_parts_begins_again(server, target):
    left_by_a_cut(server, target)
    server.files["/w"].ranges = False
    fetch(f"{server.url}/w", target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/w", "bytes=300000-")]


@pytest.mark.parametrize(("facts", "asked"), [(NOTHING_KNOWN, None), (KNOWN, "bytes=300000-")])
def test_a_part_without_a_version_is_continued_only_where_the_checksum_is_known(server, target, facts, asked):
    left_by_a_cut(server, target, etag=False)
    fetch(f"{server.url}/w", target, facts)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/w", asked)]


def test_a_part_continues_from_another_address_where_the_checksum_is_known(server, target):
    left_by_a_cut(server, target)
    server.files["/mirror"] = Served(CONTENT, etag=False)
    fetch(f"{server.url}/mirror", target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/mirror", "bytes=300000-")]


@pytest.mark.parametrize(("facts", "requests"), [(KNOWN, 0), (NOTHING_KNOWN, 1)])
def test_a_part_that_is_complete_is_only_checked(server, target, facts, requests):
    part = left_by_a_cut(server, target)
    part.write_bytes(CONTENT)
    fetch(f"{server.url}/w", target, facts)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == requests


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, target):
    server.files["/w"] = Served(CONTENT[:-1])
    with pytest.raises(FetchError, match=r"/w: wrong size: 999999 bytes, expected 1000000"):
        fetch(f"{server.url}/w", target, KNOWN)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("facts", [Facts(sha256=SHA256), Facts(md5=KNOWN.md5)])
def test_a_file_of_another_checksum_never_takes_its_name_and_is_not_continued(server, target, facts):
    server.files["/w"] = Served(OTHER)
    with pytest.raises(FetchError, match=r"/w: wrong (SHA-256|MD5): [0-9a-f]{12}\.\.\., expected .*deleted"):
        fetch(f"{server.url}/w", target, facts)
    assert list(target.parent.iterdir()) == []


def test_an_answer_without_the_file_is_one_line_that_names_the_address(server, target):
    server.files["/page"] = Served(b"<html>too many downloads</html>", kind="text/html; charset=utf-8")
    for url, problem in {
        f"{server.url}/none": "the server answers 404 Not Found",
        f"{server.url}/page": "the server answers with a web page, not with the file",
        "http://127.0.0.1:1/w": r"can't be reached \(Connection refused\)",
    }.items():
        with pytest.raises(FetchError, match=f"^{re.escape(url)}: {problem}") as caught:
            fetch(url, target, NOTHING_KNOWN)
        assert "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_a_disk_without_room_is_an_error_before_anything_is_fetched(server, target, monkeypatch):
    server.files["/w"] = Served(CONTENT)
    usage = shutil.disk_usage(target.parent)._replace(free=200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"weights.*1\.0 MB more are to come, 0\.2 MB are free.*make room"):
        fetch(f"{server.url}/w", target, KNOWN)
    assert list(target.parent.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_part_for_the_next_call(server, target):
    server.files["/w"] = Served(CONTENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"weights\.pth\.part: can't be written .*repeat the command to continue"
        ):
            fetch(f"{server.url}/w", target, KNOWN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.with_name("weights.pth.part").stat().st_size == 500_000
    fetch(f"{server.url}/w", target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("/w", "bytes=500000-")


def test_progress_of_a_continued_file_counts_what_was_there(server, target, capsys):
    left_by_a_cut(server, target)
    capsys.readouterr()
    fetch(f"{server.url}/w", target, KNOWN)
    assert capsys.readouterr().err.splitlines()[-1].startswith("weights.pth: 1.0 of 1.0 MB, took ")


def test_a_damaged_note_beside_a_part_means_that_its_version_is_unknown(server, target):
    part = left_by_a_cut(server, target)
    part.with_name("weights.pth.part.json").write_text('{"url": 3}', encoding="utf-8")
    fetch(f"{server.url}/w", target, NOTHING_KNOWN)
    assert server.asked == [("/w", None)]
    assert target.read_bytes() == CONTENT


def test_check_compares_all_that_is_known(target):
    target.write_bytes(CONTENT)
    assert check(target, KNOWN) == Facts(len(CONTENT), SHA256)
    for wrong in (Facts(size=3), Facts(sha256="0" * 64), Facts(md5="abc")):
        with pytest.raises(FetchError, match="wrong"):
            check(target, wrong)
