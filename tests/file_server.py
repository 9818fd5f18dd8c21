"""A server of files on this machine that breaks off, moves, forgets and lies as one tells it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file and how it is served. cut_after: bytes of an answer after which the connection breaks, None = never."""

    content: bytes
    ranges: bool = True
    etag: bool = True
    cut_after: int | None = None
    kind: str = "application/octet-stream"
    moved_to: str = ""

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


@dataclass
class FileServer:
    """What is served, by path; `asked` holds (path, Range header) of each request."""

    url: str
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server at work on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            served = state.files.get(self.path.partition("?")[0])
            if served is None:
                self.send_error(404)
            elif served.moved_to:
                self.send_response(302)
                self.send_header("Location", served.moved_to)
                self.end_headers()
            else:
                answer(self, served)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = FileServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, served: Served) -> None:
    """The file or the rest of it, as RFC 9110 has it."""
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    size, start = len(served.content), 0
    if asked and served.ranges and condition in (None, served.tag):
        start = int(asked[1])
        handler.send_response(206 if start < size else 416)
        handler.send_header(
            "Content-Range", f"bytes {start}-{size - 1}/{size}" if start < size else f"bytes */{size}"
        )
    else:
        handler.send_response(200)
    body = served.content[start:]
    handler.send_header("Content-Type", served.kind)
    handler.send_header("Content-Length", str(len(body)))
    if served.etag:
        handler.send_header("ETag", served.tag)
    handler.end_headers()
    with suppress(ConnectionError):  # of a client that has left
        handler.wfile.write(body[: served.cut_after])
