"""Commands that run the product."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from everydream.commands.parameters import Json

Service = Literal["gateway", "fetcher", "trainer", "inferencer", "notifier"]
COUNTING = ("fetcher", "trainer", "inferencer")
"""Those whose work is jobs alone."""


def serve(
    *,
    host: Annotated[
        str | None,
        Parameter(help="Address to listen at, 127.0.0.1 by default; 0.0.0.0: all of this machine."),
    ] = None,
    port: Annotated[int | None, Parameter(help="Port to listen at, 8080 by default.")] = None,
    home: Annotated[
        Path | None, Parameter(help="Folder for all state, ~/.everydream by default.")
    ] = None,
    base_model: Annotated[
        str | None,
        Parameter(
            help="A hub id, a diffusers folder, a .safetensors or .ckpt file, or tiny, which needs"
            " no card."
        ),
    ] = None,
) -> None:
    """Run the five services in one process: in-memory bus, SQLite, a folder.

    Settings come from the environment, docs/settings.md, where these flags do not say otherwise.
    """
    from shared.child.process import importing  # noqa: PLC0415

    flags = {"HOST": host, "PORT": port, "HOME": home, "BASE_MODEL": base_model}
    for name, value in flags.items():
        if value is not None:
            os.environ[f"EVERYDREAM_{name}"] = str(value)
            os.environ.pop(f"EVERYDREAM_{name}_FILE", None)
    with importing():
        from everydream.all_in_one import AllInOne  # noqa: PLC0415 - slow; for this command only
        from everydream.this_machine.greeting import greet  # noqa: PLC0415
        from services.fetcher.models.base_setting import check_base_model  # noqa: PLC0415
    from everydream.this_machine.machine import make_home  # noqa: PLC0415
    from everydream.this_machine.only_server import only_server  # noqa: PLC0415
    from shared.service_process import run, stop_on_signals  # noqa: PLC0415
    from shared.settings import from_environment, on_free_port  # noqa: PLC0415
    from shared.starting import begin_telemetry  # noqa: PLC0415
    from shared.telemetry import logs  # noqa: PLC0415

    logs.configure("everydream")

    async def main() -> None:
        stop = stop_on_signals()
        settings = on_free_port(from_environment())
        check_base_model(settings)
        make_home(settings)
        product = AllInOne(settings)
        begin_telemetry("everydream", settings)
        with only_server(settings):
            async with greet(settings, product.listening):
                await product.run(stop)

    run(main())


def service(
    name: Service,
    /,
    *,
    jobs: Annotated[
        int | None,
        Parameter(
            help="Of a fetcher, trainer or inferencer: end after so many jobs, or when none comes"
            " for 12 heartbeats. Otherwise it runs until it is stopped.",
            validator=Number(gte=1),
        ),
    ] = None,
) -> None:
    """Run one service against RabbitMQ, as the containers do."""
    from shared.child.process import importing  # noqa: PLC0415
    from shared.errors import SettingsError  # noqa: PLC0415
    from shared.service_process import run  # noqa: PLC0415

    if jobs is not None and name not in COUNTING:
        raise SettingsError(
            f"--jobs is for a {', '.join(COUNTING)}; a {name} takes no number of jobs"
        )
    with importing():
        module = importlib.import_module(f"services.{name}.__main__")
    run(module.main() if jobs is None else module.main(jobs))


def demo(
    output: Annotated[Path, Parameter(help="Where the results go.")] = Path("demo-output"), /
) -> None:
    """Train the tiny model on two new concepts and draw them, through the real endpoint."""
    from everydream.demo import run_demo  # noqa: PLC0415
    from shared.telemetry import logs  # noqa: PLC0415

    logs.configure("demo", logging.WARNING)
    sys.exit(asyncio.run(run_demo(output)))


def webhook_secret(*, json: Json = False) -> None:
    """Print the secret that signs webhooks, which their receivers verify them with."""
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.this_machine.machine import make_home, read_settings  # noqa: PLC0415
    from shared.keys import secret_key  # noqa: PLC0415
    from shared.keys import webhook_secret as secret_of  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        settings = read_settings()
        make_home(settings)
        secret = secret_of(settings.webhook_secret, secret_key(settings.secret_key, settings.home))
        if json:
            print_json({"secret": secret})
        else:
            print(secret)  # noqa: T201 - the result
