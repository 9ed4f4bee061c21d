"""Somebody with a folder of photos and the command line, and no place to put a zip."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from everydream import drawings
from tests.end_to_end.story import API_KEY, PATIENCE, User, picture, served
from tests.support.servers.web import running_web
from tests.support.services import WARM, ServiceProcess, environment_at, resolved

pytestmark = pytest.mark.usefixtures("warm_children")

SHORT = {"resolution": 256, "batch_size": 4, "max_epochs": 1, "lr": 1e-4, "useadam8bit": False}
DRAWING = {"width": 128, "height": 128, "num_inference_steps": 2, "seed": 7}
PROMPT = drawings.CONCEPTS[0].captions[0]


class Typed(NamedTuple):
    """What a command said, and how it ended."""

    status: int | None
    output: str
    errors: str


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with photos in it, and with a recipe beside them."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{PROMPT}_{number}.png").write_bytes(picture(number))
    (tmp_path / "photos" / "notes.pdf").write_bytes(b"%PDF")
    (tmp_path / "photos" / "g\u00e4rten_1.jpg").write_bytes(b"not a picture")
    recipe = {"train": SHORT, "inference": {"prompt": PROMPT, **DRAWING}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    return tmp_path


@asynccontextmanager
async def begun(
    desk: Path, process: ServiceProcess, *words: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that runs, and is gone at the end of the block."""
    environment = environment_at(desk) | {
        "EVERYDREAM_URL": process.url,
        "EVERYDREAM_API_KEY": API_KEY,
    }
    command = await asyncio.create_subprocess_exec(
        *resolved(["everydream", *words]), cwd=desk, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield command
    finally:
        if command.returncode is None:
            command.kill()
            await command.communicate()


async def typed(desk: Path, process: ServiceProcess, *words: str) -> Typed:
    """The finished command."""
    async with begun(desk, process, *words) as command, asyncio.timeout(PATIENCE):
        output, errors = await command.communicate()
    return Typed(command.returncode, output.decode(), errors.decode())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one() -> AsyncIterator[tuple[ServiceProcess, User]]:
    """The product in one process, for both tests."""
    async with running_web() as web, served(web, WARM) as one:
        yield one


@pytest.mark.asyncio(loop_scope="module")
async def test_a_folder_of_photos_becomes_a_model_that_draws(
    one: tuple[ServiceProcess, User], desk: Path
) -> None:
    process, _ = one
    config = ("--config", "recipe.json")
    wrong = await typed(desk, process, "run", "photos", "--set", "lr=much", "--set", "max_epoch=5")
    checked = await typed(desk, process, "check", "photos", *config)
    trained = await typed(desk, process, "run", "photos", *config, "--output", "results")
    job = json.loads((desk / "results" / "summary.json").read_text())["id"]
    drawn = await typed(
        desk, process, "draw", job, "--prompt", PROMPT, "--size", "128", "--steps", "2",
        "--count", "2", "--seed", "7", "--json",
    )  # fmt: skip
    listed = await typed(desk, process, "jobs", "--json", "--limit", "2")
    (desk / "results" / "images" / "0000.png").unlink()
    fetched = await typed(desk, process, "fetch", job, "--output", "results")

    assert wrong.status == 1
    assert "  - input.train.lr: expected a number" in wrong.errors
    assert "  - input.train.max_epoch: no such field; did you mean max_epochs?" in wrong.errors
    assert "Traceback" not in wrong.errors
    assert "uploading" not in wrong.errors
    assert checked.status == 0, checked.errors
    assert checked.output.splitlines()[0] == "4 pictures used; 1 left out:"
    assert "  left out: g\u00e4rten_1.jpg: " in checked.output
    assert "256x256" in checked.output
    assert "not uploaded: 1 .pdf" in checked.errors
    assert trained.status == 0, trained.errors
    assert trained.errors.count("4 pictures used; 1 left out:") == 1, "by its check alone"
    assert "sample saved at results/samples/sample-gs00000-000.png: " in trained.errors
    assert f'draw more with it:  everydream draw {job} --prompt "..."' in trained.errors
    document = json.loads(drawn.output)
    assert (drawn.status, document["status"]) == (0, "COMPLETED"), drawn.errors
    assert len([*(desk / document["folder"] / "images").iterdir()]) == 2
    assert [each["id"] for each in json.loads(listed.output)["jobs"]] == [document["id"], job]
    assert fetched.status == 0, fetched.errors
    assert_complete(desk / "results")


def assert_complete(results: Path) -> None:
    """Every file that the job names is there, byte for byte."""
    status = json.loads((results / "summary.json").read_text())
    kept = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path.parent.name
        for path in results.rglob("*")
        if path.is_file()
    }
    folders = {"checkpoint": "results", "image": "images", "sample": "samples"}
    for artifact in status["output"]["artifacts"]:
        expected = folders.get(artifact["kind"], "results")
        assert kept[artifact["sha256"]] == expected, artifact
    assert {"checkpoint", "image", "sample"} <= {
        artifact["kind"] for artifact in status["output"]["artifacts"]
    }


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_that_is_left_alone_goes_on_until_it_is_stopped_which_keeps_its_model(
    one: tuple[ServiceProcess, User], desk: Path
) -> None:
    long = ("run", "photos", "--config", "recipe.json", "--set", "max_epochs=100000")
    process, user = one
    submitted = await typed(desk, process, *long, "--no-wait")
    job = submitted.output.strip()
    assert submitted.status == 0, submitted.errors
    async with begun(desk, process, "follow", job) as watching, asyncio.timeout(PATIENCE):
        # Python loses a Ctrl-C that comes while it imports: wait until it watches.
        await until_line(watching, b"training: step")
        watching.send_signal(signal.SIGINT)
        _, said = await watching.communicate()
    assert watching.returncode == 130, said.decode()
    assert "The job goes on." in said.decode()
    assert f"keep what it has learnt:  everydream stop {job}" in said.decode()
    assert (await user.client.status(job))["status"] == "IN_PROGRESS"

    shown = await typed(desk, process, "show", job)
    assert f"job {job}: IN_PROGRESS" in shown.output
    stopped = await typed(desk, process, "stop", job, "--json")
    assert (stopped.status, json.loads(stopped.output)) == (0, {"id": job, "command": "stop"})
    followed = await typed(desk, process, "follow", job)
    assert followed.status == 0, followed.errors
    assert "warning: stopped on request after step" in followed.errors
    assert list((desk / "everydream-results" / job).glob("last-*.safetensors"))

    late = await typed(desk, process, "save", job)
    assert (late.status, "the job has ended: it is COMPLETED" in late.errors) == (1, True)
    deleted = await typed(desk, process, "delete", job, "--yes")
    assert (deleted.status, deleted.output) == (0, f"{job} is deleted\n")
    gone = await typed(desk, process, "show", job)
    assert (gone.status, f"there is no job '{job}' of this key" in gone.errors) == (1, True)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_that_is_cancelled_has_no_model(
    one: tuple[ServiceProcess, User], desk: Path
) -> None:
    process, _ = one
    long = ("run", "photos", "--config", "recipe.json", "--set", "max_epochs=100000")
    job = (await typed(desk, process, *long, "--no-wait")).output.strip()

    cancelled = await typed(desk, process, "cancel", job, "--yes")
    followed = await typed(desk, process, "follow", job)

    assert (cancelled.status, cancelled.output) == (0, "CANCELLED\n")
    assert followed.status == 1
    assert "CANCELLED" in followed.errors
    assert "draw more" not in followed.errors


@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_that_is_not_let_in_is_found_before_anything_is_uploaded(
    one: tuple[ServiceProcess, User], desk: Path
) -> None:
    process, _ = one
    refused = await typed(desk, process, "run", "photos", "--key", "wrong")

    assert refused.status == 1
    assert refused.errors == (
        f"everydream: {process.url} does not let this key in;"
        " give another by --key or EVERYDREAM_API_KEY\n"
    )


async def until_line(command: asyncio.subprocess.Process, words: bytes) -> None:
    assert command.stderr is not None
    async for line in command.stderr:
        if words in line:
            return
    raise AssertionError("the command ended before")
