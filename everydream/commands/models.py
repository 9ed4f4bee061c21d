"""Commands for the models that training starts from."""

from __future__ import annotations

import asyncio
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from everydream.commands.parameters import Json, stderr, stdout

app = cyclopts.App(name="models", help="The models that training starts from.")


@app.command
def pull(
    name: Annotated[
        str | None, Parameter(help="A hub id; EVERYDREAM_BASE_MODEL if none is given.")
    ] = None,
    /,
    *,
    revision: Annotated[
        str | None, Parameter(help="A commit, tag or branch; the main branch if none.")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch the base model from the hub, and keep to its commit from then on."""
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.this_machine.base_models import pull_model  # noqa: PLC0415
    from everydream.this_machine.machine import make_home, read_settings  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        settings = read_settings()
        make_home(settings)
        console = stderr() if json else stdout()
        pin = asyncio.run(pull_model(settings, name, revision, console))
        if json:
            folder = str(settings.home / pin.folder)
            print_json(
                {"model": name or settings.base_model, "commit": pin.commit, "folder": folder}
            )


@app.command(name="list")
def list_(*, json: Json = False) -> None:
    """The models on this machine, and the one that training starts from."""
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.this_machine.base_models import models_here, print_models  # noqa: PLC0415
    from everydream.this_machine.machine import read_settings  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        settings = read_settings()
        models = models_here(settings)
        if json:
            print_json({"models": models})
        else:
            print_models(stdout(), models)
