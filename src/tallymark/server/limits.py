"""What a request may weigh: a bounded body, read as it comes, unpacked as it comes."""

import zlib
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallymark.server.problems import ProblemError

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Largest body, on the wire and unpacked: about 30,000 records of usual size."""

MAX_BATCH_RECORDS: Final = 10_000
"""Most records in one request."""

MAX_RATIO: Final = 200
"""A body that unpacks to more than this many times its size is a bomb; repetitive JSON reaches about 50."""

FREE_OF_RATIO: Final = 64 * 1024
"""Unpacked bytes to which the ratio does not apply: in the first ones it says nothing."""

_PIECE: Final = 64 * 1024  # what is unpacked at a time, so that a bomb is noticed before it fills memory


class BodyLimits:
    """ASGI middleware: bodies above a size are refused (413), read no further; gzip is unpacked on the way.

    Nothing is collected here. The application reads, and what it reads is counted; a request whose body the
    application does not read is not judged beyond its headers.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = self._body(Headers(scope=scope), receive)
        except ProblemError as problem:
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, body, send)

    def _body(self, headers: Headers, receive: Receive) -> Receive:
        length = headers.get("content-length", "0")
        # int() would take "+5" and "1_000" too.
        if not (length.isascii() and length.isdigit()):
            raise ProblemError(400, "Content-Length must be a number.")
        if len(length) > 18 or int(length) > self.max_body_bytes:
            raise too_large(self.max_body_bytes)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("identity", ""):
            return _Counted(receive, self.max_body_bytes)
        if encoding in ("gzip", "x-gzip"):
            return _Unpacked(_Counted(receive, self.max_body_bytes), self.max_body_bytes)
        raise ProblemError(
            415,
            "Content-Encoding must be gzip or identity.",
            kind="content-encoding",
            headers={"Accept-Encoding": "gzip, identity"},
        )


class _Counted:
    """``receive`` that ends with 413 after too many bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.limit = limit
        self.bytes = 0

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.bytes += len(message.get("body", b""))
            if self.bytes > self.limit:
                raise too_large(self.limit)
        return message


class _Unpacked:
    """``receive`` that unpacks gzip; one or several members, as RFC 1952 allows."""

    def __init__(self, packed: _Counted, limit: int) -> None:
        self.packed = packed
        self.limit = limit
        self.bytes = 0
        self.member = _new_member()
        self.member_begun = False

    async def __call__(self) -> Message:
        message = await self.packed()
        if message["type"] != "http.request":
            return message
        more = message.get("more_body", False)
        body = self._unpack(message.get("body", b""))
        if not more and self.member_begun:
            raise ProblemError(400, "The gzip body ends too early.", kind="content-encoding")
        return {"type": "http.request", "body": body, "more_body": more}

    def _unpack(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        pending = bool(data)
        while pending:
            self.member_begun = True
            try:
                piece = self.member.decompress(data, _PIECE)
            except zlib.error:
                raise ProblemError(400, "The body is not valid gzip.", kind="content-encoding") from None
            self._count(len(piece))
            pieces.append(piece)
            if self.member.eof:
                data = self.member.unused_data
                pending = bool(data)
                self.member = _new_member()
                self.member_begun = False
            else:
                data = self.member.unconsumed_tail
                # A full piece may have left output inside zlib although all input is consumed.
                pending = bool(data) or len(piece) == _PIECE
        return b"".join(pieces)

    def _count(self, unpacked: int) -> None:
        self.bytes += unpacked
        if self.bytes > self.limit:
            raise too_large(self.limit)
        if self.bytes > FREE_OF_RATIO and self.bytes > MAX_RATIO * self.packed.bytes:
            raise ProblemError(
                413,
                f"The body unpacks to more than {MAX_RATIO} times its size.",
                kind="too-large",
                title="The request is too large",
                headers={"Connection": "close"},
            )


def _new_member() -> "zlib._Decompress":
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def too_large(limit: int) -> ProblemError:
    """413, and the rest of the body is not read."""
    return ProblemError(
        413,
        f"The body may have {limit} bytes, packed and unpacked. Send fewer records at a time.",
        kind="too-large",
        title="The request is too large",
        headers={"Connection": "close"},
    )
