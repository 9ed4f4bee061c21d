"""The command ``everydream``."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from services.gateway.web.authentication import SCOPES, Scope
from shared import telemetry
from shared.errors import Passing, Refused, SettingsError, Unavailable
from shared.service_process import importing, stop_on_signals
from shared.service_process import run as run_process
from shared.settings import Settings, from_environment

app = cyclopts.App(
    name="everydream",
    help="Fine-tune Stable Diffusion by HTTP: a drop-in for RunPod's EveryDream endpoint.",
)

models = cyclopts.App(name="models", help="The models that training starts from.")
app.command(models)

keys = cyclopts.App(name="keys", help="The keys that clients send; settings name the database.")
app.command(keys)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""
Service = Literal["gateway", "fetcher", "trainer", "inferencer", "notifier"]


@app.command
def serve() -> None:
    """Run the five services in one process: in-memory bus, SQLite, a folder.

    Settings come from the environment; see docs/settings.md.
    """
    with importing():
        from everydream.all_in_one import AllInOne  # noqa: PLC0415 - slow; for this command only

    telemetry.configure("everydream")

    async def run() -> None:
        await AllInOne(from_environment()).run(stop_on_signals())

    run_process(run())


@app.command
def service(name: Service) -> None:
    """Run one service against RabbitMQ, as the containers do."""
    with importing():
        module = importlib.import_module(f"services.{name}.__main__")
    run_process(module.main())


@app.command
def demo(
    output: Annotated[Path, cyclopts.Parameter(help="Where the results go.")] = Path("demo-output"),
) -> None:
    """Train the tiny model on two new concepts and draw them, through the real endpoint."""
    from everydream.demo import run_demo  # noqa: PLC0415

    telemetry.configure("demo", logging.WARNING)
    sys.exit(asyncio.run(run_demo(output)))


Url = Annotated[
    str | None,
    cyclopts.Parameter(env_var="EVERYDREAM_URL", help="Where the gateway answers."),
]
Key = Annotated[
    str | None,
    cyclopts.Parameter(env_var="EVERYDREAM_API_KEY", help="A key that it lets in."),
]
Results = Annotated[
    Path | None,
    cyclopts.Parameter(help="Where the results go; everydream-results/JOB if none is given."),
]


@app.command
def run(
    data: Annotated[str, cyclopts.Parameter(help="A folder of captioned images, a zip, or a URL.")],
    *,
    prompt: Annotated[
        tuple[str, ...], cyclopts.Parameter(help="Draw this with the trained model.")
    ] = (),
    set: Annotated[  # noqa: A002 - the option's name
        tuple[str, ...], cyclopts.Parameter(help="A field of train, such as max_epochs=100.")
    ] = (),
    config: Annotated[
        Path | None, cyclopts.Parameter(help="A JSON file: a whole input, or its train.")
    ] = None,
    output: Results = None,
    check: Annotated[bool, cyclopts.Parameter(help="Only report on the dataset.")] = False,
    wait: Annotated[bool, cyclopts.Parameter(help="Watch the job and fetch its results.")] = True,
    url: Url = None,
    key: Key = None,
) -> None:
    """Train on a folder of images: upload, submit, watch, fetch the results.

    Ctrl-C leaves the job going. The exit status is 0 only if the job is COMPLETED.
    """
    from rich.console import Console  # noqa: PLC0415

    from everydream.run import JobSpec, access, follow, submit  # noqa: PLC0415

    spec, console = JobSpec(data, config, set, prompt, check), Console(stderr=True)
    with errors_in_one_line():
        gateway = access(url, key, read_settings())
        job = asyncio.run(submit(gateway, spec, console))
        if not wait:
            print(job)  # noqa: T201 - for scripts
            return
        sys.exit(asyncio.run(follow(gateway, job, output, console)))


@app.command(name="follow")
def follow_(job: str, *, output: Results = None, url: Url = None, key: Key = None) -> None:
    """Watch a job that was submitted before, and fetch its results."""
    from rich.console import Console  # noqa: PLC0415

    from everydream.run import access, follow  # noqa: PLC0415

    with errors_in_one_line():
        gateway = access(url, key, read_settings())
        sys.exit(asyncio.run(follow(gateway, job, output, Console(stderr=True))))


@app.command(name="cancel")
def cancel_(job: str, *, url: Url = None, key: Key = None) -> None:
    """Stop a job; one that has ended stays as it is."""
    from everydream.run import access, cancel  # noqa: PLC0415

    with errors_in_one_line():
        print(asyncio.run(cancel(access(url, key, read_settings()), job)))  # noqa: T201


@models.command
def pull(
    name: Annotated[
        str | None, cyclopts.Parameter(help="A hub id; EVERYDREAM_BASE_MODEL if none is given.")
    ] = None,
    *,
    revision: Annotated[
        str | None, cyclopts.Parameter(help="A commit, tag or branch; the main branch if none.")
    ] = None,
) -> None:
    """Fetch the base model from the hub, and keep to its commit from then on."""
    from rich.console import Console  # noqa: PLC0415

    from everydream.models import pull_model  # noqa: PLC0415

    telemetry.configure("models", logging.WARNING)
    with errors_in_one_line():
        asyncio.run(pull_model(from_environment(), name, revision, Console(stderr=True)))


@keys.command
def make(
    name: Annotated[str, cyclopts.Parameter(help="Whose it is; no two keys have the same.")],
    *,
    scope: Annotated[
        tuple[Scope, ...],
        cyclopts.Parameter(
            help="read: look at one's own jobs. submit: submit and change them. admin: purge."
        ),
    ] = SCOPES,
) -> None:
    """Make a key and print it, once. It is let in from now on."""
    from rich.console import Console  # noqa: PLC0415

    from everydream.keys import make_key  # noqa: PLC0415

    with errors_in_one_line():
        make_key(read_settings(), name, scope, Console())


@keys.command(name="list")
def list_() -> None:
    """Every key that was made: name, scopes, last use (UTC)."""
    from rich.console import Console  # noqa: PLC0415

    from everydream.keys import list_keys  # noqa: PLC0415

    with errors_in_one_line():
        list_keys(read_settings(), Console())


@keys.command
def disable(name: str) -> None:
    """Let a key in no more, for ever. Its jobs go on."""
    from everydream.keys import disable_key  # noqa: PLC0415

    with errors_in_one_line():
        disable_key(read_settings(), name)


def read_settings() -> Settings:
    """Read the settings; warnings go to stderr, so that stdout has only a command's result."""
    telemetry.configure("everydream", logging.WARNING)
    return from_environment()


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Exit with one line, not a traceback, on errors that users can fix."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (Refused, Passing, Unavailable) as error:
        sys.exit(f"everydream: {error}")


def main() -> None:
    """Entry point; a wrong setting is reported in one line."""
    try:
        app()
    except* SettingsError as group:
        sys.exit(f"everydream: {first_of(group)}")


def first_of(group: BaseExceptionGroup[SettingsError]) -> BaseException:
    """The first error of a group, at any depth."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
