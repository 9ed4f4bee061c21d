"""Commands that submit and follow jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from everydream.commands.parameters import (
    Config,
    Data,
    Detach,
    Json,
    Key,
    PresetOption,
    Results,
    Set,
    Url,
    display,
    gateway_of,
    stderr,
    stdout,
)
from everydream.image_options import NO_DRAWING, Drawing

if TYPE_CHECKING:
    from everydream.following import Ended
    from everydream.job_spec import JobSpec


def run(
    data: Annotated[
        Data | None,
        Parameter(help="A folder of captioned images, a zip, a URL, or the id of a check."),
    ] = None,
    /,
    *,
    preset: PresetOption = None,
    set: Set = (),  # noqa: A002 - the option's name
    config: Config = None,
    output: Results = None,
    no_wait: Detach = False,
    json: Json = False,
    drawing: Drawing = NO_DRAWING,
    url: Url = None,
    key: Key = None,
) -> int:
    """Train on a folder of images: upload, check, submit, watch, fetch the results.

    Ctrl-C leaves the check or the job going. The exit status is 0 only if the job is COMPLETED.
    """
    from everydream.job_spec import JobSpec  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        given = None if data is None else str(data)
        spec = JobSpec(given, None, config, set, drawing, preset)
        return _submit_and_follow(spec, output, url, key, no_wait=no_wait, as_json=json)


def draw(
    model: Annotated[
        str, Parameter(help="A job whose model to draw with, or any other model: a hub id, a URL.")
    ],
    /,
    *,
    lora: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="MODEL[:WEIGHT]",
            show_default=False,
            help="Add this LoRA: a job's id, a hub id or a URL, as MODEL or MODEL:0.8; repeatable.",
        ),
    ] = (),
    base: Annotated[
        str | None,
        Parameter(metavar="MODEL", help="The base model, if MODEL is a LoRA's file."),
    ] = None,
    output: Results = None,
    no_wait: Detach = False,
    json: Json = False,
    drawing: Drawing = NO_DRAWING,
    url: Url = None,
    key: Key = None,
) -> int:
    """Draw with a finished model; nothing is trained."""
    from everydream.job_spec import JobSpec  # noqa: PLC0415
    from everydream.outcome import Misused, errors_in_one_line  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        if not drawing.prompts:
            raise Misused("nothing is to be drawn: give --prompt")
        if lora and base:
            raise Misused("--base: with --lora the base model is MODEL; leave --base out")
        spec = JobSpec(model=model, loras=lora, base=base, drawing=drawing)
        return _submit_and_follow(spec, output, url, key, no_wait=no_wait, as_json=json)


def check(
    data: Annotated[Data, Parameter(help="A folder of captioned images, a zip, or a URL.")],
    /,
    *,
    preset: PresetOption = None,
    set: Set = (),  # noqa: A002 - the option's name
    config: Config = None,
    json: Json = False,
    url: Url = None,
    key: Key = None,
) -> int:
    """Report on a folder of images: what is used, what is left out and why. Trains nothing."""
    from everydream import submission  # noqa: PLC0415
    from everydream.job_spec import JobSpec  # noqa: PLC0415
    from everydream.outcome import FAILED, errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.terminal.display import print_lines  # noqa: PLC0415
    from everydream.terminal.report import next_steps  # noqa: PLC0415
    from everydream.terminal.tables import print_report  # noqa: PLC0415

    spec = JobSpec(str(data), None, config, set, preset=preset)
    with errors_in_one_line(as_json=json):
        submission.validate(spec, None)
        gateway = gateway_of(url, key)
        with display() as shown:
            status = asyncio.run(submission.check_dataset(gateway, spec, shown))
        if json:
            print_json(status)
        else:
            print_report(stdout(), status)
            for line in next_steps(status, gateway.flags):
                print_lines(stderr(), line)
    return 0 if status["status"] == "COMPLETED" else FAILED


def follow(
    job: str, /, *, output: Results = None, json: Json = False, url: Url = None, key: Key = None
) -> int:
    """Watch a job that was submitted before, and fetch its results."""
    from everydream import following  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        gateway = gateway_of(url, key)
        with display() as shown:
            announcer = following.Announcer(shown)
            ended = asyncio.run(following.follow(gateway, job, output, shown, announcer))
        return _end(ended, as_json=json)


def fetch(
    job: str, /, *, output: Results = None, json: Json = False, url: Url = None, key: Key = None
) -> int:
    """Fetch a job's results again; files that are there already are only compared.

    The exit status is 0 only if the job is COMPLETED and all its results are there.
    """
    from everydream import following  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        gateway = gateway_of(url, key)
        with display() as shown:
            ended = asyncio.run(following.fetch(gateway, job, output, shown))
        return _end(ended, as_json=json)


def _submit_and_follow(
    spec: JobSpec, output: Path | None, url: str | None, key: str | None, *,
    no_wait: bool, as_json: bool,
) -> int:  # fmt: skip
    from everydream import following, submission  # noqa: PLC0415
    from everydream.outcome import Misused, print_json  # noqa: PLC0415
    from everydream.results import RESULTS  # noqa: PLC0415

    if no_wait and output is not None:
        raise Misused("--output: with --no-wait nothing is fetched; give it to everydream follow")
    submission.validate(spec, None if no_wait else output or RESULTS)
    gateway = gateway_of(url, key)
    with display() as shown:
        if not no_wait:
            announcer = following.Announcer(shown)
            submitted = submission.check_and_submit(gateway, spec, shown, announcer, output)
            job = asyncio.run(submitted)
            ended = asyncio.run(following.follow(gateway, job, output, shown, announcer))
            return _end(ended, as_json=as_json)
        job = asyncio.run(submission.submit(gateway, spec, shown))
    if as_json:
        print_json({"id": job})
    else:
        print(job)  # noqa: T201 - for scripts
    return 0


def _end(ended: Ended, *, as_json: bool) -> int:
    """The exit status of a job that has ended; for programs its status, and its files."""
    from everydream.outcome import FAILED, print_json  # noqa: PLC0415

    if as_json:
        folder, lost = str(ended.folder), ended.lost
        print_json({**ended.status, "folder": folder, "not_fetched": lost})
    return 0 if ended.status["status"] == "COMPLETED" and not ended.lost else FAILED
