"""Commands for what was uploaded."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from everydream.commands.jobs import LISTED, query
from everydream.commands.parameters import Json, Key, Url, Yes, stdout

if TYPE_CHECKING:
    from everydream.client import Client

app = cyclopts.App(name="uploads", help="Your uploads, newest first; they count in your budgets.")


@app.default
def list_(
    *,
    limit: Annotated[int, Parameter(help="The most to list: 1 to 100.")] = LISTED,
    cursor: Annotated[str | None, Parameter(help="`next` of the page before.")] = None,
    json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List your uploads, newest first: their size, and whether all of it has arrived."""
    from everydream.terminal.tables import print_uploads  # noqa: PLC0415

    def ask(client: Client, _flags: str) -> Awaitable[dict[str, Any]]:
        return client.uploads(limit=limit, cursor=cursor)

    asked = f" --limit {limit}" if limit != LISTED else ""
    query(ask, url, key, json, lambda page, flags: print_uploads(stdout(), page, f"{asked}{flags}"))


@app.command
def delete(
    upload: str, /, *, yes: Yes = False, json: Json = False, url: Url = None, key: Key = None
) -> None:
    """Delete an upload; one that a job has yet to fetch stays."""

    async def ask(client: Client, _flags: str) -> dict[str, Any]:
        await client.delete_upload(upload)
        return {"id": upload, "deleted": True}

    question = None if yes else f"Delete upload {upload} for good?"
    query(
        ask, url, key, json,
        lambda *_: stdout().print(f"{upload} is deleted", soft_wrap=True, markup=False),
        question=question,
    )  # fmt: skip
