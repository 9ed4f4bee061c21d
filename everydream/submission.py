"""Has a job's data checked, and submits the job."""

from __future__ import annotations

import json
import tempfile
import uuid
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from everydream.access import Access, check_key, client_of
from everydream.client import Client, Rejected, with_retries
from everydream.following import Announcer, watch
from everydream.job_spec import JobSpec
from everydream.photos import as_zip, expect_usable, left_out_lines, upload
from everydream.presets import explained
from everydream.results import check_writable
from everydream.terminal.display import Display
from everydream.terminal.report import into_flag, while_it_checks
from shared.errors import Refused

RUN, CHECK = "/run", "/dataset/check"
NO_CHECKS = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
"""What a gateway answers whose keys, or whose version, make no checks."""
UNUSED_BY_CHECKS = ("inference", "s3Config")
WEBHOOK = ("webhook", "webhook_events_filter")
DATA_URL = "input.train.data_url:"


def validate(spec: JobSpec, output: Path | None) -> None:
    """Find all that can be wrong with a job before its gateway is asked.

    Raises:
        Misused, Refused: the job is invalid, or the results cannot be written.
    """
    spec.checked()
    if spec.file:
        expect_usable(spec.file)
    if output is not None:
        check_writable(output)


async def submit(gateway: Access, spec: JobSpec, display: Display) -> str:
    """Upload a valid job's data if necessary, submit it, and return its id, which is not said.

    Raises:
        Refused: the gateway refuses.
        Unavailable: the gateway does not answer.
    """
    async with client_of(gateway) as client:
        may_look = await check_key(client)
        request = await _request(client, spec, display, may_look=may_look)
        return await _Submitter(client, gateway, display).run_once(RUN, request)


async def check_and_submit(
    gateway: Access,
    spec: JobSpec,
    display: Display,
    announcer: Announcer,
    output: Path | None = None,
) -> str:
    """Like :func:`submit`, but new data are checked first, reported on, and trained on as reported.

    Raises:
        Refused: the gateway refuses, or the data cannot be trained on.
        Unavailable: the gateway does not answer.
    """
    async with client_of(gateway) as client:
        may_look = await check_key(client)
        request = await _request(client, spec, display, may_look=may_look)
        submitter = _Submitter(client, gateway, display)
        if not has_new_data(request):
            return await submitter.begin(RUN, request)
        check = await submitter.begin_check(request) if may_look else None
        if check is None:
            reason = "or server makes no checks" if may_look else "may not look at jobs"
            display.say(f"the pictures are not checked first: this key {reason}")
            return await submitter.begin(RUN, request)
        options = f"{spec.options}{into_flag(output)}"
        status = await submitter.watched(check, options, announcer)
        if status["status"] != "COMPLETED":
            reason = f": {status['error']}" if status.get("error") else ""
            raise Refused(f"nothing is trained, because the check is {status['status']}{reason}")
        return await submitter.submit_checked(request, check)


async def check_dataset(gateway: Access, spec: JobSpec, display: Display) -> dict[str, Any]:
    """Have the data of a valid job reported on; returns the last status of the check.

    Raises:
        Refused: the gateway refuses.
        Unavailable: the gateway does not answer.
    """
    async with client_of(gateway) as client:
        may_look = await check_key(client)
        request = await _request(client, spec, display, may_look=may_look)
        if unused := [name for name in UNUSED_BY_CHECKS if _given(request, name)]:
            display.say(f"not used by a check: {', '.join(unused)}")
        submitter = _Submitter(client, gateway, display)
        check = await submitter.begin(CHECK, request)
        return await submitter.watched(check)


def has_new_data(request: dict[str, Any]) -> bool:
    """Whether a request trains on what the gateway has yet to fetch, and not on an earlier check.

    An upload of ours has a URL, too.
    """
    return "://" in str(request["input"].get("train", {}).get("data_url", ""))


class _Submitter(NamedTuple):
    """Submits jobs and checks to a gateway, and says so."""

    client: Client
    gateway: Access
    display: Display

    async def begin_check(self, request: dict[str, Any]) -> str | None:
        """Begin a check of the job's data, without the job's webhook and what is said of that.

        Returns its id; None: this key or gateway makes no checks.
        """
        alone = {name: value for name, value in request.items() if name not in WEBHOOK}
        try:
            return await self.begin(CHECK, alone)
        except aiohttp.ClientResponseError as error:
            if error.status in NO_CHECKS:
                return None
            raise

    async def submit_checked(self, request: dict[str, Any], check: str) -> str:
        """Submit a job on what a check has staged, or on the data if no check is kept."""
        inputs = request["input"]
        train = {**inputs["train"], "data_url": check}
        on_the_check = {**request, "input": {**inputs, "train": train}}
        try:
            return await self.begin(RUN, on_the_check)
        except Rejected as error:
            if not all(each.startswith(DATA_URL) for each in error.mistakes):
                raise
            self.display.say(
                "the check is not trained on but its data, again: this server keeps no checks"
            )
            return await self.begin(RUN, request)

    async def watched(
        self, check: str, options: str = "", announcer: Announcer | None = None
    ) -> dict[str, Any]:
        """Show a check until it ends; returns its last status.

        ``options`` are those of a command that trains on it later.
        """
        status: dict[str, Any] = {}
        hints = while_it_checks(check, options, self.gateway.flags)
        with self.display.if_interrupted(hints):
            async for status in watch(self.client, self.gateway, check, self.display):
                if announcer:
                    announcer.see(status)
        return status

    async def begin(self, operation: str, request: dict[str, Any]) -> str:
        """Submit a job, and say its id."""
        job = await self.run_once(operation, request)
        self.display.say(f"{'check' if operation == CHECK else 'job'} {job}")
        return job

    async def run_once(self, operation: str, request: dict[str, Any]) -> str:
        """Submit a job once, however often its answer is lost."""
        once = str(uuid.uuid4())
        listing = f"everydream jobs{self.gateway.flags}"
        with self.display.if_interrupted(
            f"It may have been submitted already; this shows it:  {listing}"
        ):
            return await with_retries(
                lambda: self.client.run(request, operation=operation, once=once)
            )


async def _request(
    client: Client, spec: JobSpec, display: Display, *, may_look: bool
) -> dict[str, Any]:
    """The body of ``/run``, whose data are uploaded if they have to be."""
    if spec.preset:
        display.say(f"preset {spec.preset} sets, each by a document of EveryDream2 or our own:")
        display.say("\n".join(explained(spec.preset, spec.checked()["input"]["train"])))
    of_check = await _options_of_check(client, spec, display) if may_look else {}
    return spec.request(await _uploaded(client, spec, display), of_check)


async def _options_of_check(client: Client, spec: JobSpec, display: Display) -> dict[str, Any]:
    """What a check was asked for with, where a job is to train on its pictures."""
    if (check := spec.check) is None:
        return {}
    status = await with_retries(lambda: client.status(check))
    train = (status.get("input") or {}).get("train") or {}
    options = {name: value for name, value in train.items() if name != "data_url"}
    if options:
        shown = ", ".join(f"{name} {json.dumps(value)}" for name, value in options.items())
        display.say(f"as the check, unless said otherwise here: {shown}")
    return options


def _given(request: dict[str, Any], name: str) -> bool:
    return bool(request.get(name) or request["input"].get(name))


async def _uploaded(client: Client, spec: JobSpec, display: Display) -> str | None:
    """The URL of the data that was uploaded; None: there is nothing to upload."""
    if (file := spec.file) is None:
        return None
    for line in left_out_lines(file):
        display.say(line)
    with (
        display.if_interrupted("Nothing was submitted."),
        tempfile.TemporaryDirectory(prefix="everydream-") as folder,
    ):
        archive = await as_zip(file, Path(folder), display)
        heading = f"uploading {file.name or file}"
        with display.transfer(heading, archive.stat().st_size) as on_bytes:
            return await upload(client, archive, on_bytes)
