"""What every test may ask for: private servers, started by the first test that needs them."""

import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.child.process import FOR_LIBRARIES, importing
from tests.support.schedule import SlowFirst, rank
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.process import in_own_loop
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web, running_web
from tests.support.warm.server import start_server

if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes share the cores: torch's threads, two to a core, would wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"

# As in the children: it is read when torch and bitsandbytes are imported.
os.environ["TORCHDYNAMO_DISABLE"] = FOR_LIBRARIES["TORCHDYNAMO_DISABLE"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As a shell has it for what it runs in the background. Some tests send Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Else rich draws the traceback of every exception that is logged, for a tenth of a second and more.
# structlog keeps this renderer when it is reset.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback

TESTS = Path(__file__).parent
KINDS = {"unit", "contract", "integration", "security", "faults", "end_to_end", "clients", "gpu"}
SETTINGS = ("AWS_", "EVERYDREAM_")
MOST_WORKERS = 4
PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import the tests and what they need as the services do: a third is saved in each worker."""
    with importing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark each test by the folder that it is in, and begin with the slow ones that are chosen."""
    for item in items:
        if item.path.is_relative_to(TESTS):
            kind = item.path.relative_to(TESTS).parts[0]
            if kind in KINDS:
                item.add_marker(kind)
    yield
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Have the processes forked from the one that forks warm children: all import the same."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: here, for all of them
    start_server()
    for spec in specs:
        spec.python = f"{sys.executable} -m tests.support.warm.worker"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SlowFirst:
    return SlowFirst(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Twice the cores: much of what the tests do is to wait. Each worker has servers of its own."""
    return min(2 * len(os.sched_getaffinity(0)), MOST_WORKERS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a card where there is none."""
    if item.get_closest_marker("gpu") and not cuda_devices():
        pytest.skip("no CUDA device is present")


def cuda_devices() -> int:
    """Ask the driver: a torch that misses the card is a failure, not a reason to skip."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    number = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    return 0 if failed else number.value


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(SETTINGS) or name.lower() in PROXIES:
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that a test calls sends logs to a stream that is closed when the test ends."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """The node that all tests share; a test that kills or pauses it need not bring it back."""
    with RabbitMQ() as node:
        yield node


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> str:
    """The address of a virtual host of the test's own."""
    rabbitmq.start()
    return rabbitmq.fresh_url()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgreSQL) -> str:
    """The address of a database of the newest schema, to be copied and left alone."""
    from tests.support.migrated import migrate  # noqa: PLC0415 - heavy, and not for every session

    postgres.start()
    url = postgres.url()
    in_own_loop(migrate(url))
    return url


@pytest.fixture
def postgres_url(postgres: PostgreSQL, migrated_postgres: str) -> Iterator[str]:
    """The address of a database of the newest schema, dropped after the test."""
    postgres.start()
    url = postgres.url(migrated_postgres)
    yield url
    postgres.drop(url)


@pytest.fixture
def empty_postgres_url(postgres: PostgreSQL) -> Iterator[str]:
    """The address of an empty database, dropped after the test."""
    postgres.start()
    url = postgres.url()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """The name of an empty bucket."""
    s3_server.start()
    return s3_server.create_bucket()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with running_web() as server:
        yield server


@pytest.fixture(scope="session")
def warm_children() -> None:
    """For tests that start children of ``tests.support.warm``."""
    start_server()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny tensors: more of torch's threads would only wait for one another."""
    import torch  # noqa: PLC0415 - heavy, and not for every session

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
