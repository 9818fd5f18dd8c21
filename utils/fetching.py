"""Fetching a file over HTTP: continued where it was cut, checked before it takes its name.

Until then the file is <name>.part, and <name>.part.json says where it is from.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import write_json
from utils.progress import BYTES, progress
from utils.resources import digest_of
from utils.schema import check_fields

TIMEOUT_S = 30  # without a byte
BLOCK = 1 << 18  # bytes read at a time
SHOWN_DIGITS = 12  # of a checksum, in an error
AGENT = "Mozilla/5.0 (compatible; resumable download)"  # some servers refuse Python's own
WHOLE, PART, NOT_THAT_LONG = 200, 206, 416  # HTTP's answers to a request for the rest of a file


class FetchError(ValueError):
    """This address does not give the file; another one may."""


class CutError(FetchError):
    """The connection broke; what has come is kept."""


@dataclass(frozen=True)
class Facts:
    """What is known of a file: bytes, SHA-256, the beginning of its MD5; empty where it is not known."""

    size: int | None = None
    sha256: str = ""
    md5: str = ""


NOTHING_KNOWN = Facts()


@dataclass(frozen=True)
class PartFile:
    """The beginning of a file that is being fetched; `origin` describes it, `validator` is its version there."""

    path: Path

    @property
    def origin(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url: str) -> str:
        """The version that the server at `url` gave for this part; "" where it is unknown."""
        try:
            values = json.loads(self.origin.read_text(encoding="utf-8"))
            check_fields(values, {"url": str, "validator": str})
        except (OSError, ValueError, RecursionError):
            return ""
        return values["validator"] if values["url"] == url else ""

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)


def fetch(url: str, target: Path, facts: Facts) -> Facts:
    """Fetch `url` into `target`; returns its size and SHA-256.

    A part that an earlier call left is continued where the server can, and where it is certain that it is the same
    file: by the server's word, or by a known SHA-256. Raises FetchError when this address does not give the file
    that `facts` describe, and OSError when it can't be written. The part stays, unless it is a wrong file.
    """
    part = PartFile(target.with_name(f"{target.name}.part"))
    if facts.size is None or part.size != facts.size:
        _transfer(url, part, target.name, facts)
    try:
        found = check(part.path, facts)
    except FetchError as error:
        part.delete()
        raise FetchError(f"{url}: {error}; what has come was deleted") from error
    part.path.replace(target)
    part.delete()
    return found


def check(path: Path, facts: Facts) -> Facts:
    """Size and SHA-256 of a file. Raises FetchError when it is not the one that `facts` describe."""
    size = path.stat().st_size
    if facts.size is not None and size != facts.size:
        raise FetchError(f"wrong size: {size} bytes, expected {facts.size}")
    sha256 = digest_of(path, "sha256")
    if facts.sha256 and sha256 != facts.sha256:
        raise FetchError(_wrong("SHA-256", sha256, facts.sha256))
    if facts.md5 and not (md5 := digest_of(path, "md5")).startswith(facts.md5):
        raise FetchError(_wrong("MD5", md5, facts.md5))
    return Facts(size, sha256)


def _wrong(name: str, found: str, expected: str) -> str:
    return f"wrong {name}: {found[:SHOWN_DIGITS]}..., expected {expected[:SHOWN_DIGITS]}..."


def _transfer(url: str, part: PartFile, name: str, facts: Facts) -> None:
    """Receive the whole file; a broken connection is taken up again as long as each time brings more."""
    while True:
        before = part.size
        try:
            return _receive(url, part, name, facts)
        except CutError:
            if part.size <= before:
                raise


def _receive(url: str, part: PartFile, name: str, facts: Facts) -> None:
    """One request: the file, or the rest of it."""
    with _request(url, _headers(url, part, facts)) as answer:
        if answer.status == NOT_THAT_LONG:  # all of it is there, or it is another file
            if _length_of_whole(answer) != part.size:
                part.delete()
                raise CutError(f"{url}: the part that was there is of another file; repeat the command")
            return
        start, total = _range(answer, url)
        if start not in (0, part.size):
            raise FetchError(f"{url}: asked for the bytes from {part.size} on, the server sent others")
        if facts.size is not None and total is not None and total != facts.size:
            raise FetchError(f"{url}: wrong size: {total} bytes, expected {facts.size}")
        with _writing(part.path):
            _check_room(part.path.parent, total, start)
            validator = _strong_validator(answer.headers)
            write_json(part.origin, {"url": url, "validator": validator})
        with progress(name, total, BYTES, done=start) as advance:
            for size in _append(answer, part, start, url):
                advance(size)
    if total is not None and part.size < total:
        raise CutError(f"{url}: cut after {_mb(part.size)} of {_mb(total)}; repeat the command to continue")


def _append(answer: http.client.HTTPResponse, part: PartFile, start: int, url: str) -> Iterator[int]:
    """Write what comes, from byte `start` of the part on; yields the size of each block."""
    with _writing(part.path), part.path.open("ab") as file:
        file.truncate(start)
        while block := _read(answer, url):
            file.write(block)
            yield len(block)


def _headers(url: str, part: PartFile, facts: Facts) -> dict[str, str]:
    """What asks for the rest of the part where one can be certain that it is the same file, else for the whole."""
    validator = part.validator(url)
    if part.size == 0 or not (validator or facts.sha256):
        return {}
    rest = {"Range": f"bytes={part.size}-"}
    return {**rest, "If-Range": validator} if validator else rest


@contextmanager
def _request(url: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
    """The server's answer to a GET. Raises FetchError when it is none that has the file."""
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, **headers})
    try:
        answer = urllib.request.build_opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != NOT_THAT_LONG:
            raise FetchError(f"{url}: the server answers {error.code} {error.reason}") from error
        answer = error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"{url}: can't be reached ({_reason(error)})") from error
    with contextlib.closing(answer):
        if answer.headers.get_content_type() == "text/html" and answer.status in (WHOLE, PART):
            raise FetchError(f"{url}: the server answers with a web page, not with the file")
        yield answer


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise CutError(f"{url}: cut ({_reason(error)}); repeat the command to continue") from error


def _range(answer: http.client.HTTPResponse, url: str) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the whole file is (None: the server does not say)."""
    length = answer.headers.get("Content-Length", "")
    if answer.status == WHOLE:
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status != PART or found is None:
        raise FetchError(f"{url}: the server answers {answer.status}, which does not hold the file")
    return int(found[1]), int(found[2]) if found[2] != "*" else None


def _length_of_whole(answer: http.client.HTTPResponse) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _strong_validator(headers: Any) -> str:
    """What tells one version of a file from another, byte for byte; "" where the server gives no such thing."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else ""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: can't be written ({error.strerror or error}); make room, and repeat the command to continue"
        ) from error


def _check_room(folder: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(folder).free
    if total is not None and total - start > free:
        raise OSError(f"{_mb(total - start)} more are to come, {_mb(free)} are free")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
