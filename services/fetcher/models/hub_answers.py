"""Bounds on what the hub's library reads into memory: listings, errors and redirects.

It reads them whole, follows pages without end, and unpacks what is compressed. Files are streamed
to the disk and not bounded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import httpx2
from huggingface_hub import get_session, set_client_factory

ANSWER_BYTES = 16 << 20
"""Of all these answers together: a repository of 50,000 files takes about 12 MB."""
PAGES = 200
"""Answers of the hub's interface; a page lists up to a thousand files."""
ANSWER_SECONDS = 60.0
"""For the body of one; also the longest silence."""


class AnswerTooLarge(Exception):
    """More came than a listing can have; the text says of what."""


def bound_answers() -> None:
    """Make all later requests of the hub's library keep to these bounds."""
    hooks = get_session().event_hooks
    bounds = _Bounds()

    def client() -> httpx2.Client:
        return httpx2.Client(
            event_hooks={**hooks, "response": [bounds.apply]},
            headers={"Accept-Encoding": "identity"},
            follow_redirects=True,
            timeout=ANSWER_SECONDS,
        )

    set_client_factory(client)


class _Bounds:
    def __init__(self) -> None:
        self._left = ANSWER_BYTES
        self._pages = 0

    def apply(self, response: httpx2.Response) -> None:
        """Called with each answer before its body is read."""
        is_page = response.request.url.path.startswith("/api/")
        if response.is_success and not is_page:
            return
        self._pages += is_page
        if self._pages > PAGES:
            raise AnswerTooLarge(f"the hub lists more than {PAGES} pages")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise AnswerTooLarge("the hub compresses its listing, which it was asked not to")
        assert isinstance(response.stream, httpx2.SyncByteStream)  # noqa: S101 - not an async client
        response.stream = _BoundedStream(response.stream, self)

    def take(self, count: int) -> None:
        """Count bytes that were read."""
        self._left -= count
        if self._left < 0:
            raise AnswerTooLarge(f"the hub lists more than {ANSWER_BYTES >> 20} MiB")


class _BoundedStream(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, bounds: _Bounds) -> None:
        self._stream = stream
        self._bounds = bounds

    def __iter__(self) -> Iterator[bytes]:
        deadline = monotonic() + ANSWER_SECONDS
        for piece in self._stream:
            self._bounds.take(len(piece))
            if monotonic() > deadline:
                raise httpx2.ReadTimeout(f"the hub's answer took more than {ANSWER_SECONDS:g} s")
            yield piece

    def close(self) -> None:
        self._stream.close()
