"""A private S3 server: moto's objects behind a door that checks every signature.

Runs as a process of its own: `python -m tests.support.servers.s3 PORT ACCESS_KEY SECRET_KEY`.
"""

import secrets
import signal
import sys
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from werkzeug.serving import run_simple

from tests.support.servers.moods import Mood, Moody, tell
from tests.support.servers.process import (
    HOST,
    Child,
    Server,
    free_port,
    in_own_loop,
    listens,
    search_path,
)
from tests.support.servers.sigv4 import Door

ROOT = Path(__file__).parents[3]
START_SECONDS = 120

CONFIG = AioConfig(
    signature_version="s3v4",
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    retries={"max_attempts": 1, "mode": "standard"},
)


class S3Server(Server):
    """One S3 server that knows one pair of keys."""

    region = "us-east-1"

    def __init__(self, access_key: str = "test-access-id", secret_key: str = "") -> None:
        super().__init__()
        self.access_key = access_key
        self.secret_key = secret_key or secrets.token_hex(20)
        self.port = free_port()
        self._server: Child | None = None
        self._numbers = count(1)
        # Of all clients: each session parses S3's description again, for a tenth of a second.
        self._session = aioboto3.Session()

    @property
    def endpoint_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start the server; it begins empty every time."""
        if self._server and self._server.alive:
            return
        module = (
            "-m",
            "tests.support.servers.s3",
            str(self.port),
            self.access_key,
            self.secret_key,
        )
        self._server = Child([sys.executable, *module], folder=self.folder, env=self._environment())
        self._server.wait_until(lambda: listens(self.port), START_SECONDS)

    def end_processes(self) -> None:
        if self._server:
            self._server.end(signal.SIGTERM)
            self._server = None

    def mood(self, mood: Mood) -> None:
        """Answer every request so from now on, until told otherwise."""
        tell(self.folder, mood)

    def client(self, **others: Any) -> AbstractAsyncContextManager[Any]:
        """Open an aioboto3 client; its keys and settings may be replaced by others."""
        settings = {
            "endpoint_url": self.endpoint_url,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": self.region,
            "config": CONFIG,
        }
        client: AbstractAsyncContextManager[Any]
        client = self._session.client("s3", **(settings | others))
        return client

    def create_bucket(self, name: str = "") -> str:
        """Make a bucket, by default under a name that nobody has used, and return its name."""
        name = name or f"bucket-{next(self._numbers)}"
        in_own_loop(self._create_bucket(name))
        return name

    async def _create_bucket(self, name: str) -> None:
        async with self.client() as client:
            await client.create_bucket(Bucket=name)

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {"PATH": search_path(), "HOME": folder, "TMPDIR": folder, "PYTHONPATH": str(ROOT)}


def serve(port: int, access_key: str, secret_key: str) -> None:
    """Serve until the process is ended."""
    # Only the server's process pays for these: they take a second to load.
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )

    door = Door(DomainDispatcherApplication(create_backend_app), access_key, secret_key)
    moody = Moody(door, Path.cwd())
    run_simple(HOST, port, moody, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])
