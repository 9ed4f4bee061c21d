"""A server that is not well: a WSGI application in front of another.

A file tells its mood. The tests write the file, the server's process reads it at every request.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Mood = Literal["well", "overloaded", "short"]
"""``overloaded``: 503; ``short``: breaks off in the middle of whatever is fetched."""
FILE = "mood"
OVERLOADED = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
)
SHORT_BYTES = 16
"""Of a longer answer so much comes, and then the end."""


def tell(folder: Path, mood: Mood) -> None:
    """Holds for every request from now on."""
    new = folder / f".{FILE}"
    new.write_text(mood)
    new.replace(folder / FILE)


def told(folder: Path) -> str:
    file = folder / FILE
    return file.read_text() if file.exists() else "well"


class Moody:
    """Answers as the mood is that the folder's file tells."""

    def __init__(self, app: WSGIApplication, folder: Path) -> None:
        self._app = app
        self._folder = folder

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        mood = told(self._folder)
        if mood == "overloaded":
            start_response("503 Slow Down", [("Content-Length", str(len(OVERLOADED)))])
            return [OVERLOADED]
        answer = self._app(environ, start_response)
        if mood == "short" and environ["REQUEST_METHOD"] == "GET":
            return _broken_off(environ, answer)
        return answer


def _broken_off(environ: WSGIEnvironment, answer: Iterable[bytes]) -> Iterator[bytes]:
    data = b"".join(answer)
    yield data[:SHORT_BYTES]
    if len(data) > SHORT_BYTES:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError
