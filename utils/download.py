"""Fetch the published weights, check them, and put them where the programs look for them.

    python utils/download.py                              # what the three stages need: DINO ViT-B/8, Point-MAE
    python utils/download.py UFF Point_Bert               # others by name, as the flags of main.py call them
    python utils/download.py --list                       # what there is, what is there already
    python utils/download.py --mirror github.com=HOST2    # another host for one of the addresses
    python utils/download.py --mirror https://HOST/FOLDER # all files from one folder, under the names of --list

A download that was cut continues with the same command. A file takes its name only when its size and checksum are
right. Where no checksum is published it is recorded in .downloads.json, beside the files, and compared from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from models.backbones import RGB_BACKBONES, XYZ_BACKBONES
from models.downloads import CHECKPOINT_DIR, UFF, Download
from utils.console import print_anything
from utils.fetching import NOTHING_KNOWN, Facts, FetchError, check, fetch
from utils.files import alone_with, check_writable, in_short, sweep_leftovers, write_json
from utils.flags import named_path
from utils.schema import check_fields
from utils.signals import INTERRUPTED

BACKBONES = [row.download for row in RGB_BACKBONES.values()] + [
    row.download for row in XYZ_BACKBONES.values()
]
DOWNLOADS = {item.name: item for item in (*BACKBONES, UFF) if item and item.urls}
DEFAULT = ("vit_base_patch8_224_dino", "Point_MAE")  # what stages 1 and 3 need
MIRROR_VARIABLE = "M3DM_MIRROR"
RECORD = ".downloads.json"
SCHEMES = ("https://", "http://")


def get_args_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help=f"{', '.join(DOWNLOADS)} (default: {' '.join(DEFAULT)})")
    add(
        "--checkpoint_dir",
        type=named_path,
        default=CHECKPOINT_DIR,
        help="where the files go (default: checkpoints)",
    )
    add(
        "--mirror",
        action="append",
        type=mirror,
        metavar="URL or HOST=HOST2",
        help=f"a folder that holds all files, or another host in the place of one; may be given again (default: the "
        f"environment variable {MIRROR_VARIABLE}, several divided by spaces)",
    )
    add("--unchecked", action="store_true", help="take files of another size or checksum than the known one")
    add("--list", action="store_true", help="show names, files and addresses, and fetch nothing")
    return parser


def mirror(text: str) -> tuple[str, str]:
    """(host, what takes its place), or ("", address of a folder)."""
    host, _, other = ("", "", text) if text.startswith(SCHEMES) else text.partition("=")
    address = other if other.startswith(SCHEMES) else f"https://{other}"
    if not other or not urlsplit(address).netloc:
        raise argparse.ArgumentTypeError(
            f"{text} is neither an address such as https://HOST/FOLDER nor HOST=HOST2"
        )
    return host, address.rstrip("/")


def addresses(download: Download, mirrors: Iterable[tuple[str, str]]) -> list[str]:
    """Where to look for a file: its own addresses, or what the mirrors make of them."""
    urls = list(download.urls)
    for host, other in mirrors:
        if not host:
            return [f"{other}/{download.file}"]
        for i, url in enumerate(urls):
            parts = urlsplit(url)
            if parts.netloc == host:
                urls[i] = other + url.removeprefix(f"{parts.scheme}://{parts.netloc}")
    return urls


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status, 1 when a file could not be had."""
    print_anything()
    parser = get_args_parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in DOWNLOADS]
    if unknown:
        parser.error(f"NAME {' '.join(unknown)}: not known; there are {', '.join(DOWNLOADS)}")
    try:
        mirrors = args.mirror or [mirror(text) for text in os.environ.get(MIRROR_VARIABLE, "").split()]
    except argparse.ArgumentTypeError as error:
        parser.error(f"{MIRROR_VARIABLE}: {error}")
    names = dict.fromkeys(args.names or DEFAULT)
    try:
        if args.list:
            print("\n".join(describe(item, args.checkpoint_dir, mirrors) for item in DOWNLOADS.values()))
            return 0
        return download_all([DOWNLOADS[name] for name in names], args.checkpoint_dir, mirrors, args.unchecked)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


def describe(download: Download, folder: Path, mirrors: Iterable[tuple[str, str]]) -> str:
    """What --list says of a file."""
    size = f", {download.facts.size / 1e6:.1f} MB" if download.facts.size else ""
    state = "is there" if download.path_in(folder).is_file() else "not there"
    head = f"{download.name}: {download.title}, {download.path_in(folder)}{size}, {state}"
    return "\n".join([head, *(f"  {url}" for url in addresses(download, mirrors))])


def download_all(
    downloads: Sequence[Download], folder: Path, mirrors: Sequence[tuple[str, str]], unchecked: bool
) -> int:
    """Fetch the files that are not there, and check those that are; one that fails does not stop the others."""
    check_writable(folder, "--checkpoint_dir")
    failed = 0
    with alone_with(folder / ".downloading", f"--checkpoint_dir {folder}: another download is at work there"):
        sweep_leftovers(folder, deep=False)
        for download in downloads:
            try:
                print(obtain(download, folder, addresses(download, mirrors), unchecked), flush=True)
            except FetchError as error:
                failed += 1
                print(f"failed: {error}", file=sys.stderr)
    return int(failed > 0)


def obtain(download: Download, folder: Path, urls: Sequence[str], unchecked: bool) -> str:
    """Have one file in the folder, right as far as can be known; returns a line that says so. Raises FetchError."""
    path, record = download.path_in(folder), read_record(folder)
    facts = NOTHING_KNOWN if unchecked else known_facts(download, record)
    if path.exists():
        try:
            found = check(path, facts)
        except FetchError as error:
            raise FetchError(
                f"{path}: {error}; move it away and repeat the command, or keep it with --unchecked"
            ) from error
        return f"{path}: was there, {_checked(found, facts)}"
    failures = []
    for url in urls:
        try:
            found = fetch(url, path, facts)
        except FetchError as error:
            failures.append(str(error))
            continue
        entry = {"url": url, "size": found.size, "sha256": found.sha256}
        write_json(folder / RECORD, {**record, download.file: entry})
        return f"{path}: fetched from {urlsplit(url).netloc}, {_checked(found, facts)}"
    by_hand = f"; by hand: open {download.page}, download, and save as {path}" if download.page else ""
    raise FetchError("; ".join(failures) + by_hand)


def known_facts(download: Download, record: dict[str, dict[str, Any]]) -> Facts:
    """What is published of the file; where that is no SHA-256, size and SHA-256 of its first download."""
    first = record.get(download.file)
    if download.facts.sha256 or first is None:
        return download.facts
    return replace(download.facts, size=first["size"], sha256=first["sha256"])


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """url, size and sha256 of each file that was fetched into the folder. Raises ValueError when it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        check_fields(values, dict.fromkeys(values, dict[str, Any]))
        for entry in values.values():
            check_fields(entry, {"url": str, "size": int, "sha256": str})
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: is damaged ({in_short(str(error))}); delete it, and checksums are recorded anew"
        ) from error
    return values


def _checked(found: Facts, facts: Facts) -> str:
    compared = "SHA-256" if facts.sha256 else "the beginning of the MD5" if facts.md5 else ""
    result = f"{compared} as expected" if compared else "nothing known to compare it with"
    return f"{found.size} bytes, SHA-256 {found.sha256}, {result}"


if __name__ == "__main__":
    sys.exit(main())
