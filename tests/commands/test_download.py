"""utils/download.py, against a server on this machine."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_extractors.networks import WeightsSource, check_files
from feature_extractors.settings import Settings
from models.backbones import RGB_BACKBONES, XYZ_BACKBONES
from models.downloads import UFF, CheckpointError, Download
from tests.file_server import FileServer, Served, serving
from utils import download as command
from utils.fetching import Facts

RIGHT, WRONG = b"right" * 1000, b"wrong" * 1000
SHA256 = hashlib.sha256(RIGHT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(command.MIRROR_VARIABLE, raising=False)
    with serving() as running:
        running.files = {"/known": Served(RIGHT), "/plain": Served(RIGHT)}
        rows = [
            Download("known.pth", "Known", "known", (f"{running.url}/known",), Facts(len(RIGHT), SHA256)),
            Download("plain.pth", "Plain", "plain", (f"{running.url}/plain",), page="https://drive/page"),
        ]
        monkeypatch.setattr(command, "DOWNLOADS", {row.name: row for row in rows})
        monkeypatch.setattr(command, "DEFAULT", ("known", "plain"))
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def run(folder: Path, *flags: str) -> int:
    return command.main([*flags, "--checkpoint_dir", str(folder)])


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that is not progress."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " MB, " not in line]
    return line


def test_without_names_the_default_files_are_fetched_and_a_second_run_leaves_them(server, folder, capsys):
    assert run(folder) == 0
    assert (folder / "known.pth").read_bytes() == (folder / "plain.pth").read_bytes() == RIGHT
    first = capsys.readouterr().out.splitlines()
    assert all(f"5000 bytes, SHA-256 {SHA256}" in line for line in first)
    assert first[0].endswith("SHA-256 as expected")
    assert run(folder) == 0
    assert [line.split(": ")[1][:9] for line in capsys.readouterr().out.splitlines()] == ["was there"] * 2
    assert len(server.asked) == 2


def test_a_file_of_another_checksum_is_refused_and_the_others_come_all_the_same(server, folder, capsys):
    server.files["/known"] = Served(WRONG)
    assert run(folder) == 1
    assert re.match(r"failed: http.*/known: wrong SHA-256: .* expected", the_error(capsys))
    assert not (folder / "known.pth").exists()
    assert (folder / "plain.pth").read_bytes() == RIGHT


def test_a_file_that_is_there_but_not_the_known_one_is_named_and_left_alone(server, folder, capsys):
    folder.mkdir()
    (folder / "known.pth").write_bytes(WRONG)
    assert run(folder, "known") == 1
    assert "known.pth: wrong SHA-256" in (line := the_error(capsys))
    assert "move it away and repeat the command, or keep it with --unchecked" in line
    assert (folder / "known.pth").read_bytes() == WRONG
    assert run(folder, "known", "--unchecked") == 0
    assert server.asked == []


def test_a_checksum_that_nobody_published_is_recorded_and_compared_from_then_on(server, folder, capsys):
    assert run(folder, "plain") == 0
    record = json.loads((folder / ".downloads.json").read_text(encoding="utf-8"))
    assert record == {"plain.pth": {"url": f"{server.url}/plain", "size": len(RIGHT), "sha256": SHA256}}
    (folder / "plain.pth").write_bytes(WRONG)
    assert run(folder, "plain") == 1
    assert "plain.pth: wrong SHA-256" in the_error(capsys)
    (folder / "plain.pth").unlink()
    server.files["/plain"] = Served(WRONG)
    assert run(folder, "plain") == 1
    assert "/plain: wrong SHA-256" in the_error(capsys)
    assert run(folder, "plain", "--unchecked") == 0
    assert (folder / "plain.pth").read_bytes() == WRONG


def test_the_next_address_is_tried_and_at_last_a_person_is_told_where_to_click(server, folder, capsys):
    row = command.DOWNLOADS["plain"]
    urls = (f"{server.url}/gone", *row.urls)
    command.DOWNLOADS["plain"] = Download(row.file, row.title, row.name, urls, page=row.page)
    assert run(folder, "plain") == 0
    (folder / "plain.pth").unlink()
    server.files.clear()
    assert run(folder, "plain") == 1
    line = the_error(capsys)
    assert re.search(r"/gone: the server answers 404 .*; http.*/plain: the server answers 404", line)
    assert line.endswith(f"by hand: open https://drive/page, download, and save as {folder / 'plain.pth'}")


def test_a_folder_of_all_files_is_a_mirror(server, folder):
    server.files = {"/all/known.pth": Served(RIGHT), "/all/plain.pth": Served(RIGHT)}
    assert run(folder, "--mirror", f"{server.url}/all/") == 0
    assert [path for path, _ in server.asked] == ["/all/known.pth", "/all/plain.pth"]


def test_the_environment_names_mirrors_too_and_the_flag_wins(server, folder, monkeypatch, capsys):
    monkeypatch.setenv(command.MIRROR_VARIABLE, f"other.host=x {server.url}/nowhere")
    assert run(folder, "known") == 1
    assert "/nowhere/known.pth: the server answers 404" in the_error(capsys)
    server.files["/all/known.pth"] = Served(RIGHT)
    assert run(folder, "known", "--mirror", f"{server.url}/all") == 0
    monkeypatch.setenv(command.MIRROR_VARIABLE, "nonsense")
    with pytest.raises(SystemExit):
        run(folder, "known")
    assert "M3DM_MIRROR: nonsense is neither an address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mirrors", "expected"),
    [
        (["a.org=b.org"], ["https://b.org/x/y.pth?id=1", "https://c.org/y.pth"]),
        (
            ["a.org=b.org", "c.org=http://d.org:81/e"],
            ["https://b.org/x/y.pth?id=1", "http://d.org:81/e/y.pth"],
        ),
        (["a.org=b.org/https://a.org"], ["https://b.org/https://a.org/x/y.pth?id=1", "https://c.org/y.pth"]),
        (["org=b.org"], ["https://a.org/x/y.pth?id=1", "https://c.org/y.pth"]),
        (["https://m.org/w"], ["https://m.org/w/y.pth"]),
    ],
)
def test_what_mirrors_make_of_addresses(mirrors, expected):
    row = Download("y.pth", "Y", "y", ("https://a.org/x/y.pth?id=1", "https://c.org/y.pth"))
    assert command.addresses(row, [command.mirror(text) for text in mirrors]) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[", "is damaged"),
        ("[1]", "is damaged"),
        ('{"plain.pth": {"url": "u", "size": "3", "sha256": ""}}', "size is '3', which it can't be"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_it(content, problem, server, folder, capsys):
    folder.mkdir()
    (folder / ".downloads.json").write_text(content, encoding="utf-8")
    assert run(folder, "plain") == 1
    line = the_error(capsys)
    assert line.startswith(f"error: {folder / '.downloads.json'}")
    assert problem in line


def test_wrong_names_and_folders_are_one_line(server, folder, capsys):
    with pytest.raises(SystemExit) as caught:
        run(folder, "none")
    assert caught.value.code == 2
    assert "NAME none: not known; there are known, plain" in capsys.readouterr().err
    folder.write_bytes(b"")
    assert run(folder, "plain") == 1
    assert the_error(capsys).startswith(f"error: --checkpoint_dir {folder}: can't write there")


def test_ctrl_c_says_that_the_same_command_continues(server, folder, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "fetch", interrupted)
    assert run(folder) == 130
    assert the_error(capsys) == "interrupted; the same command continues"


def test_list_shows_what_there_is_and_fetches_nothing(server, folder, capsys):
    folder.mkdir()
    (folder / "known.pth").write_bytes(RIGHT)
    assert run(folder, "--list") == 0
    text = capsys.readouterr().out
    assert f"known: Known, {folder / 'known.pth'}, 0.0 MB, is there\n  {server.url}/known\n" in text
    assert f"plain: Plain, {folder / 'plain.pth'}, not there\n" in text
    assert server.asked == []


def test_missing_weights_are_named_with_commands_that_fetch_them(tmp_path, monkeypatch):
    folder = tmp_path / "my weights"
    method = "DINO+Point_MAE+Fusion"
    with pytest.raises(CheckpointError) as caught:
        check_files(Settings(method_name=method), WeightsSource(folder, folder / "uff.pth"))
    text = str(caught.value)
    commands = re.findall(r"python utils/download\.py ([^,;()]*?)(?: \(|,|;)", text)
    assert len(commands) == 3
    fetched = []
    monkeypatch.setattr(
        command, "download_all", lambda items, where, *_: fetched.append((items[0].file, where))
    )
    for flags in commands:
        command.main(shlex.split(flags))
    files = ["dino_vitbase8_pretrain.pth", "pointmae_pretrain.pth", "uff_pretrain.pth"]
    assert fetched == [(file, folder) for file in files]
    assert f"--fusion_module_path {folder / 'uff_pretrain.pth'}" in text.replace("'", "")


def test_the_tables_call_a_download_as_the_flags_call_its_backbone():
    rows = {**RGB_BACKBONES, **XYZ_BACKBONES}
    names = {name: row.download.name for name, row in rows.items() if row.download}
    assert names == {name: name for name in names}
    assert list(command.DOWNLOADS) == [*names, UFF.name]


@pytest.mark.parametrize("row", command.DOWNLOADS.values(), ids=lambda row: row.name)
def test_addresses_are_secure_and_checksums_are_checksums(row):
    assert all(
        re.fullmatch(r"https://[\w.]+/\S+", url) for url in (*row.urls, *([row.page] if row.page else []))
    )
    assert re.fullmatch(r"([0-9a-f]{64})?", row.facts.sha256)
    assert re.fullmatch(r"([0-9a-f]{6,32})?", row.facts.md5)
