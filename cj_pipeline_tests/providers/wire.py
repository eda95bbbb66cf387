"""A minimal HTTP/1.1 server on asyncio streams: keep-alive, bodies of known length, broken connections on demand."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HEAD = 64 * 1024
MAX_BODY = 256 * 1024 * 1024
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Request:
    """What a client sent. Names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader

    async def client_leaves(self, within: float) -> bool:
        """Wait until the client closes the connection; False when it is still there after so many seconds."""
        try:
            await asyncio.wait_for(self.reader.read(1), within)
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True


@dataclass(slots=True)
class Reply:
    """What the server answers. With `half`, the connection closes in the middle of the body."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    half: bool = False

    def encoded(self) -> bytes:
        """The bytes on the wire."""
        phrase = _PHRASES.get(self.status, "Overloaded")
        lines = [f"HTTP/1.1 {self.status} {phrase}", f"content-type: {self.content_type}"]
        lines.append(f"content-length: {len(self.body)}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head + (self.body[: len(self.body) // 2] if self.half else self.body)


Handler = Callable[[Request], Awaitable[Reply | None]]
"""None as the reply closes the connection without an answer."""


async def serve_connection(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests of one connection until either side closes it."""
    try:
        while (request := await _read_request(reader)) is not None:
            reply = await handler(request)
            if reply is None:
                break
            writer.write(reply.encoded())
            await writer.drain()
            if reply.half or request.headers.get("connection", "").lower() == "close":
                break
    except _MalformedError as problem:
        writer.write(Reply(400, str(problem).encode(), "text/plain", {"connection": "close"}).encoded())
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the client left
    finally:
        with contextlib.suppress(ConnectionError):
            writer.close()


class _MalformedError(Exception):
    """Not HTTP as this server reads it."""


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    try:
        method, target, _ = first.split(" ")
    except ValueError:
        raise _MalformedError("malformed request line") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise _MalformedError("bad content length")
        body = await reader.readexactly(int(length))
    url = urlsplit(target)
    return Request(method, unquote(url.path), dict(parse_qsl(url.query)), headers, body, reader)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        size_line = await reader.readuntil(b"\r\n")
        try:
            size = int(size_line.split(b";")[0], 16)
        except ValueError:
            raise _MalformedError("malformed chunk") from None
        if len(body) + size > MAX_BODY:
            raise _MalformedError("body too large")
        chunk = await reader.readexactly(size + 2)
        if size == 0:
            return bytes(body)
        body += chunk[:-2]


def form_parts(body: bytes, content_type: str) -> dict[str, tuple[str, bytes]]:
    """Fields of a multipart form: name → (file name or "", content)."""
    _, _, boundary = content_type.partition("boundary=")
    delimiter = b"--" + boundary.split(";")[0].strip().strip('"').encode("latin-1")
    parts = {}
    for section in (b"\r\n" + body).split(b"\r\n" + delimiter)[1:]:
        head, separator, content = section.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not separator:
            continue  # the closing delimiter
        options = {}
        for line in head.decode("utf-8", "replace").split("\r\n"):
            if line.lower().startswith("content-disposition:"):
                for option in line.split(";")[1:]:
                    name, _, value = option.strip().partition("=")
                    options[name] = value.strip('"')
        if "name" in options:
            parts[options["name"]] = (options.get("filename", ""), content)
    return parts
