"""Commands for jobs that were submitted."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from everydream.commands.parameters import Json, Key, Url, Yes, gateway_of, stdout

if TYPE_CHECKING:
    from everydream.client import Client
    from shared.request import Command

Answer = TypeVar("Answer")
LISTED = 20
SAID = {
    "sample": "a row of samples is drawn of the current step, if the training goes on that long",
    "save": "a checkpoint is saved after the current step",
    "stop": "the training ends after the current step; what it has learnt is kept",
}


def jobs(
    *,
    status: Annotated[
        tuple[str, ...],
        Parameter(show_default=False, help="Only these: IN_QUEUE, IN_PROGRESS, COMPLETED, ..."),
    ] = (),
    limit: Annotated[int, Parameter(help="The most to list: 1 to 100.")] = LISTED,
    cursor: Annotated[str | None, Parameter(help="`next` of the page before.")] = None,
    json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List your jobs, newest first."""
    from everydream.terminal.tables import print_jobs  # noqa: PLC0415

    def ask(client: Client, _flags: str) -> Awaitable[dict[str, Any]]:
        return client.jobs(status, limit=limit, cursor=cursor)

    asked = "".join(f" --status {shlex.quote(each)}" for each in status)
    asked += f" --limit {limit}" if limit != LISTED else ""
    query(ask, url, key, json, lambda page, flags: print_jobs(stdout(), page, f"{asked}{flags}"))


def show(job: str, /, *, json: Json = False, url: Url = None, key: Key = None) -> None:
    """Show a job as it is now: what it does, its pictures, its warnings, its end."""
    from everydream.terminal.tables import print_status  # noqa: PLC0415

    query(
        lambda client, _flags: client.status(job), url, key, json,
        lambda status, flags: print_status(stdout(), status, flags),
    )  # fmt: skip


def sample(job: str, /, *, json: Json = False, url: Url = None, key: Key = None) -> None:
    """Draw a row of samples of a running training now."""
    _command(job, "sample", url, key, json)


def save(job: str, /, *, json: Json = False, url: Url = None, key: Key = None) -> None:
    """Save a checkpoint of a running training now."""
    _command(job, "save", url, key, json)


def stop(job: str, /, *, json: Json = False, url: Url = None, key: Key = None) -> None:
    """End a running training now and keep what it has learnt: the job goes on to its end."""
    _command(job, "stop", url, key, json)


def cancel(
    job: str, /, *, yes: Yes = False, json: Json = False, url: Url = None, key: Key = None
) -> None:
    """End a job and throw away what it has learnt; one that has ended stays as it is."""
    from everydream.client import ENDS  # noqa: PLC0415

    def show_people(state: dict[str, Any], _flags: str) -> None:
        status = str(state["status"])
        is_too_late = status in ENDS and status != "CANCELLED"
        _print(f"{job} has ended as {status}: nothing to cancel" if is_too_late else status)

    async def ended(client: Client, _flags: str) -> dict[str, Any] | None:
        from aiohttp import ClientResponseError  # noqa: PLC0415

        try:
            status = (await client.status(job))["status"]
        except ClientResponseError as error:
            if error.status != HTTPStatus.FORBIDDEN:  # this key may cancel, and not look
                raise
            return None
        return {"id": job, "status": status} if status in ENDS else None

    question = f"Cancel job {job}, and throw away what it has learnt?"
    query(
        lambda client, _flags: client.cancel(job), url, key, json, show_people,
        question=None if yes else question, settled=ended,
    )  # fmt: skip


def retry(job: str, /, *, json: Json = False, url: Url = None, key: Key = None) -> None:
    """Run a job that FAILED or TIMED_OUT again, from where it stopped."""

    def show_people(state: dict[str, Any], flags: str) -> None:
        _print(f"{state['status']}; watch it:  everydream follow {job}{flags}")

    query(lambda client, _flags: client.retry(job), url, key, json, show_people)


def delete(
    job: str,
    /,
    *,
    checkpoint: Annotated[
        int | None,
        Parameter(help="Only the intermediate checkpoint of this step.", name="--checkpoint"),
    ] = None,
    yes: Yes = False,
    json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Remove a job, its model and all its files for good; or one of its checkpoints."""
    whole = f"job {job}, its model and all its files"
    part = f"the checkpoint at step {checkpoint} of job {job}"

    def ask(client: Client, _flags: str) -> Awaitable[dict[str, Any]]:
        if checkpoint is None:
            return client.delete(job)
        return client.delete_checkpoint(job, checkpoint)

    query(
        ask, url, key, json,
        lambda *_: _print(f"{job if checkpoint is None else part} is deleted"),
        question=None if yes else f"Remove {whole if checkpoint is None else part} for good?",
    )  # fmt: skip


def _command(job: str, command: Command, url: str | None, key: str | None, as_json: bool) -> None:  # noqa: FBT001
    async def sent(client: Client, flags: str) -> dict[str, Any]:
        await _order(client, job, command, flags)
        return {"id": job, "command": command}

    query(sent, url, key, as_json, lambda *_: _print(f"{job}: {SAID[command]}"))


async def _order(client: Client, job: str, command: Command, flags: str) -> None:
    """Send a running training a command; if it does not train, say what works instead.

    Raises:
        Rejected: the job does not train.
        aiohttp.ClientError: the gateway does not answer.
    """
    from aiohttp import ClientError  # noqa: PLC0415

    from everydream.client import Rejected  # noqa: PLC0415
    from everydream.terminal.report import instead_of_a_sample  # noqa: PLC0415

    try:
        await client.send_command(job, command)
    except Rejected as error:
        if command == "sample" and error.status == HTTPStatus.CONFLICT:
            with suppress(ClientError):  # this key may not look
                instead = instead_of_a_sample(await client.status(job), flags)
                error.mistakes += [instead] if instead else []
        raise


def query(
    ask: Callable[[Client, str], Awaitable[dict[str, Any]]],
    url: str | None,
    key: str | None,
    as_json: bool,  # noqa: FBT001
    show_people: Callable[[dict[str, Any], str], None],
    *,
    question: str | None = None,
    settled: Callable[[Client, str], Awaitable[dict[str, Any] | None]] | None = None,
) -> None:
    """Ask the gateway once, and show its answer.

    The functions also get the flags of a further command. A ``question`` is asked before, unless
    ``settled`` finds that nothing is left to ask for, and answers itself.
    """
    from everydream.access import client_of  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415

    async def answer_of(function: Callable[[Client, str], Awaitable[Answer]]) -> Answer:
        async with client_of(gateway) as client:
            return await function(client, gateway.flags)

    with errors_in_one_line(as_json=as_json):
        if question:
            _expect_terminal(question)
        gateway = gateway_of(url, key)
        answer = asyncio.run(answer_of(settled)) if question and settled else None
        if answer is None:
            if question:
                _confirm(question)
            answer = asyncio.run(answer_of(ask))
        if as_json:
            print_json(answer)
        else:
            show_people(answer, gateway.flags)


def _expect_terminal(question: str) -> None:
    """Raises Misused: there is nobody to ask."""
    from everydream.outcome import Misused  # noqa: PLC0415

    if not sys.stdin.isatty():
        raise Misused(f"{question} There is no terminal to ask on: give --yes")


def _confirm(question: str) -> None:
    """Ask on a terminal; exit unless the answer is yes."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    try:
        answer = input()
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        sys.exit("everydream: nothing was changed")


def _print(text: str) -> None:
    print(text)  # noqa: T201 - the result
