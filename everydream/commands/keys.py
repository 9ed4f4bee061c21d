"""The operator's commands for keys."""

from __future__ import annotations

from typing import Annotated

import cyclopts
from cyclopts import Parameter

from everydream.commands.parameters import Json, stdout
from services.gateway.web.authentication import CLIENT_SCOPES, Scope

app = cyclopts.App(name="keys", help="The keys that clients send; the settings name the database.")


@app.command
def make(
    name: Annotated[str, Parameter(help="Whose it is; no two keys have the same.")],
    /,
    *,
    scope: Annotated[
        tuple[Scope, ...],
        Parameter(
            show_default=False,
            help="read: look at one's own jobs. submit: submit and change them. admin: purge and"
            " delete. operate: look after the whole service, all keys' jobs. The first three if"
            " none is given.",
        ),
    ] = CLIENT_SCOPES,
    json: Json = False,
) -> None:
    """Make a key and print it, once. It is let in from now on."""
    from everydream import api_keys  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        made = api_keys.make_key(api_keys.prepared(), name, scope)
        if json:
            print_json(made)
        else:
            api_keys.print_made(stdout(), made)


@app.command(name="list")
def list_(*, json: Json = False) -> None:
    """Every key that was made: name, scopes, last use (UTC)."""
    from everydream import api_keys  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        keys = api_keys.list_keys(api_keys.prepared())
        if json:
            print_json(keys)
        else:
            api_keys.print_keys(stdout(), keys)


@app.command
def disable(name: str, /, *, json: Json = False) -> None:
    """Let a key in no more, for ever. Its jobs go on."""
    from everydream import api_keys  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        api_keys.disable_key(api_keys.prepared(), name)
        if json:
            print_json({"name": name, "disabled": True})
        else:
            stdout().print(f"Key {name!r} is let in no more; its jobs go on.", markup=False)
