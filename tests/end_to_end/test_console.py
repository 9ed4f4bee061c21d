"""The console in a browser, on separate services over RabbitMQ and PostgreSQL."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiohttp
import pytest
import pytest_asyncio
from pillow_heif import register_heif_opener
from playwright.async_api import Browser, Locator, Page, Response, expect

from everydream import drawings
from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.key_ports import StoredKey
from services.gateway.web.authentication import CLIENT_SCOPES, Scope, digest_of
from shared.adapters.folder import FolderStore
from shared.messaging.topology import FETCHER
from shared.service_process import closing
from tests.contract.bus_worlds import plain_channel
from tests.end_to_end.story import API_KEY, User, host_of, user_of
from tests.support.browser import Visit, browser, sign_in, visit
from tests.support.many_jobs import add_grid, add_jobs
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web, running_web
from tests.support.services import WARM, Services, running, shared_environment

SERVICES = ["gateway", "fetcher", "trainer", "inferencer", "notifier"]
PATIENCE = 120_000.0
"""Milliseconds: a training of the tiny model on a busy machine."""
MOST_BYTES = 150 << 10
"""Of the whole page, compressed."""
LOST = "The connection is lost"
CUT_SECONDS = 10.0
"""In which what the page asks for fails, again and again."""
PROMPTS = ["a photo of a zorblat", "a photo of a wuggleby"]

pytestmark = [
    pytest.mark.usefixtures("warm_children"),
    pytest.mark.asyncio(loop_scope="module"),
]
World = tuple[Services, User, Browser]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(
    rabbitmq: RabbitMQ,
    postgres: PostgreSQL,
    s3_server: S3Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[World]:
    """One of every service; their store is a folder, whose files come from the gateway."""
    rabbitmq.start()
    postgres.start()
    store = tmp_path_factory.mktemp("store")
    async with running_web() as web, browser() as chromium:
        environment = shared_environment(
            amqp_url=rabbitmq.fresh_url(), database_url=postgres.url(), s3=s3_server, bucket="none",
            HEARTBEAT="0.5", ALLOWED_PRIVATE_HOSTS=host_of(web.url()), STORE_URL=store.as_uri(),
        )  # fmt: skip
        async with (
            running(SERVICES, environment, program=WARM) as services,
            user_of(services.first("gateway").url, web) as user,
        ):
            yield services, user, chromium


@asynccontextmanager
async def signed_in(here: World, **options: Any) -> AsyncIterator[tuple[Visit, Page]]:
    services, _, chromium = here
    async with visit(chromium, services.first("gateway").url, **options) as one:
        page = await one.page()
        await sign_in(page, API_KEY)
        yield one, page


def long_training(user: User) -> dict[str, Any]:
    """One that goes on until somebody stops it, and draws a second row when it is asked to."""
    return user.request(max_epochs=100_000, sample_steps=10**9, sample_prompts=PROMPTS)


@asynccontextmanager
async def long_job(user: User) -> AsyncIterator[str]:
    """It is not left behind for the next story."""
    job = await user.client.run(long_training(user))
    try:
        yield job
    finally:
        await user.client.cancel(job)


async def test_a_running_job_moves_on_the_screen_and_is_stopped_and_kept(
    here: World, tmp_path: Path
) -> None:
    services, user, _ = here
    async with long_job(user) as job, signed_in(here) as (one, page):
        await page.get_by_role("link", name=re.compile(job)).click()
        await expect_kind(page, "Training")
        bar = page.get_by_role("progressbar", name="Training")
        await expect(bar).to_be_visible(timeout=PATIENCE)
        first = await bar.get_attribute("value")
        await expect(bar).not_to_have_attribute("value", first or "", timeout=PATIENCE)

        rows = page.locator(".sample-grid tbody tr")
        await expect(rows).to_have_count(1, timeout=PATIENCE)
        await expect(rows.last).to_contain_text("Before")
        await page.get_by_role("button", name="Sample now").click()
        await expect(rows).to_have_count(2, timeout=PATIENCE)
        await one.assert_accessible(page)
        await one.assert_keyboard(page)

        await walk_the_grid(one, page)
        await outlive_the_gateway(services, one, page)
        first = await bar.get_attribute("value")
        await expect(bar).not_to_have_attribute("value", first or "", timeout=PATIENCE)
        await page.locator("summary").filter(has_text="Events").click()
        await page.get_by_role("button", name="Save now").click()
        await expect(page.locator(".log")).to_contain_text("safetensors", timeout=PATIENCE)
        async with page.expect_response(is_the_end, timeout=PATIENCE):
            await stop(page)
        await expect(page.get_by_text(LOST)).to_be_hidden()

        link = page.get_by_role("link", name=re.compile("Download: .*safetensors")).first
        await expect(link).to_be_visible(timeout=PATIENCE)
        async with page.expect_download() as downloading:
            await link.click()
        model = tmp_path / "model.safetensors"
        await (await downloading.value).save_as(model)

        status = await user.finished(job)
        assert status["status"] == "COMPLETED"
        await expect(page.locator(".job-head .status")).to_have_text("Done")
        assert await rows.locator("img").count() == len(status["output"]["train"]["samples"])
        told = {file["sha256"] for file in status["output"]["artifacts"]}
        assert hashlib.sha256(model.read_bytes()).hexdigest() in told
        await one.assert_accessible(page)

        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="Report", exact=True).click()
        assert (await downloading.value).suggested_filename == "report.html"
        await delete_the_checkpoint(page)
        assert (await user.client.status(job))["output"]["train"]["checkpoints"] == []
        await page.get_by_role("link", name="All jobs").click()
        row = page.locator(".job").filter(has_text=job)
        await expect_loaded(row.locator("img.thumb"))


async def walk_the_grid(one: Visit, page: Page) -> None:
    """From the model before, through time and to the other prompt, by keys alone."""
    await page.get_by_role("button", name=f"{PROMPTS[0]}, step 0: open").focus()
    await page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog", name="Sample")
    await expect(viewer.get_by_text("Before", exact=True)).to_be_visible()
    await page.keyboard.press("ArrowUp")
    await expect(viewer.locator("dd").first).to_have_text(re.compile(r"Step \d+"))
    await page.keyboard.press("ArrowRight")
    await expect(viewer).to_contain_text(PROMPTS[1])
    await viewer.get_by_label("Compare with").select_option("Before")
    await expect(viewer.locator(".divider span")).to_have_text([re.compile(r"Step \d+"), "Before"])
    await one.assert_accessible(page)
    await page.keyboard.press("Escape")
    await expect(viewer).to_be_hidden()


def is_the_end(answer: Response) -> bool:
    """The browser has asked for more of a stream that is over."""
    return "/events/" in answer.url and answer.status == 204


async def outlive_the_gateway(services: Services, one: Visit, page: Page) -> None:
    """Pictures that are asked for while it is away come with the next one."""
    rows = page.locator(".sample-grid tbody tr")
    one.expected = ("ERR_FAILED", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
    await page.route(re.compile(r"\.webp\?"), lambda route: route.abort())
    await page.reload()
    await expect(rows.last).to_contain_text("Before", timeout=PATIENCE)
    await expect(rows.get_by_text("Cannot be shown here")).to_have_count(4, timeout=PATIENCE)
    await page.unroute_all()
    await restart_the_gateway(services, page)
    await expect_loaded(rows.last.locator("img").last)
    one.expected = ()


async def restart_the_gateway(services: Services, page: Page) -> None:
    """Meanwhile the page says no more than that the connection is lost."""
    gateway = services.first("gateway")
    await gateway.stop()
    await expect(page.get_by_text(LOST)).to_be_visible(timeout=PATIENCE)
    await expect(page.locator(".notice, .problem-text")).to_have_count(0)
    await services.start("gateway", gateway.environment)
    await expect(page.get_by_text(LOST)).to_be_hidden(timeout=PATIENCE)


async def stop(page: Page) -> None:
    """By keys alone; at first with a change of mind."""
    button = page.get_by_role("button", name="Stop and keep")
    question = page.get_by_role("dialog")
    await button.focus()
    await page.keyboard.press("Enter")
    await expect(question).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(question).to_be_hidden()
    await expect(button).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(question).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(question.get_by_role("button", name="Stop and keep")).to_be_focused()
    await page.keyboard.press("Enter")


async def delete_the_checkpoint(page: Page) -> None:
    delete = page.get_by_role("button", name="Delete the checkpoint of step")
    await expect(delete).to_have_count(1)
    await delete.click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(delete).to_have_count(0)


async def test_a_dropped_folder_is_mended_trained_as_it_was_mended_and_drawn_with(
    here: World, tmp_path: Path
) -> None:
    """One picture is a phone's HEIC without a caption, and one is broken off."""
    _, user, _ = here
    register_heif_opener()
    whole = drawings.draw_concept(drawings.CONCEPTS[0], Random(1), 256)
    for name in (f"{PROMPTS[0]}_1.png", "IMG_2042.heic", "IMG_2043.png", "IMG_2041.jpg"):
        whole.save(tmp_path / name)
    broken = (tmp_path / "IMG_2041.jpg").read_bytes()
    (tmp_path / "IMG_2041.jpg").write_bytes(broken[: len(broken) // 2])

    async with signed_in(here) as (one, page):
        await page.get_by_role("link", name="New job").first.click()
        await page.get_by_label("Choose a folder").set_input_files(tmp_path)
        await page.get_by_role("button", name="Use other pictures").click(timeout=PATIENCE)
        await drop(page, tmp_path)
        await expect(page.get_by_text("1 file is not used")).to_be_visible(timeout=PATIENCE)
        caption = page.get_by_role("textbox", name="IMG_2042.heic")
        await caption.fill(PROMPTS[1])
        await page.get_by_label("Use IMG_2043.png").uncheck()
        await page.get_by_role("radio", name="A person").check()
        for field, value in (("max_epochs", "2"), ("batch_size", "2")):
            await page.locator(f"#input-train-{field}").fill(value)
        await page.locator("#input-train-resolution").select_option("256")
        await page.get_by_text("Your bucket, webhook and limits").click()
        await page.get_by_label("Address of your webhook").fill(user.web.url("/console"))
        await page.get_by_label("At the start").check()
        await page.get_by_label("Longest run").fill("86000000")
        check = page.url.rpartition("=")[2]
        await page.get_by_role("button", name="Start the training").click()

        done = page.locator(".job-head .status")
        await expect(done).to_have_text("Done", timeout=PATIENCE)
        left_out = page.locator(".left-out li")
        await expect(left_out.filter(has_text="IMG_2041.jpg")).to_contain_text("No picture")
        await expect_loaded(left_out.filter(has_text="IMG_2043.png").locator("img"))
        assert await told_statuses(user.web, "/console", 2) == ["IN_PROGRESS", "COMPLETED"]
        job = page.url.rpartition("/")[2]
        dataset = (await user.client.status(job))["output"]["dataset"]
        captions = {each["file"]: each["caption"] for each in dataset["pictures"]}
        assert sorted(captions.values()) == sorted(PROMPTS)
        assert dataset["captions"]["edited"] == 1

        await expect(page.get_by_text("Final LoRA")).to_be_visible()
        await page.get_by_role("link", name="Draw with this model").click()
        drawing = await draw_with_half_of_the_lora(one, page)
        asked = (await user.client.status(drawing))["input"]
        assert (asked["model"], asked["inference"][0]["loras"]) == (job, [0.5])
        await page.goto(f"{one.url}/#/jobs/{check}")
        await expect_kind(page, "Check of a data set")
        await expect(page.get_by_role("link", name="Draw with this model")).to_have_count(0)
        await page.get_by_role("link", name="Train on these pictures").click()
        await expect(page.get_by_role("textbox", name="IMG_2042.heic")).to_have_value(PROMPTS[1])


async def draw_with_half_of_the_lora(one: Visit, page: Page) -> str:
    """On the screen for it; then on the page of the job that has drawn, whose id is returned."""
    await page.get_by_label("Weight of the LoRA").fill("0.5")
    await page.get_by_label("Prompt", exact=True).fill(PROMPTS[1])
    for field in ("width", "height"):
        await page.locator(f"#draw-{field}").select_option("128")
    await page.locator("#draw-num_inference_steps").fill("2")
    await page.get_by_role("button", name="Draw", exact=True).click()
    drawn = page.get_by_role("main").locator("img").first
    await expect(drawn).to_be_visible(timeout=PATIENCE)
    await one.assert_accessible(page)
    await page.get_by_role("article").get_by_role("link").first.click()
    await expect_kind(page, "Drawing")
    return page.url.rpartition("/")[2]


async def expect_kind(page: Page, kind: str) -> None:
    """A job's screen says what kind of job it is."""
    title = re.compile(f"^{kind} [0-9a-f]{{8}}")
    await expect(page.get_by_role("heading", level=1)).to_have_text(title)


async def drop(page: Page, path: Path) -> None:
    """A folder on the form's zone for it, as if the mouse had brought it from the desktop."""
    box = await page.locator(".drop-zone").bounding_box()
    assert box
    mouse = await page.context.new_cdp_session(page)
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    carried = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        await mouse.send("Input.dispatchDragEvent", {"type": kind, **where, "data": carried})


async def told_statuses(web: Web, path: str, number: int) -> list[str]:
    """Of the first webhooks that were sent there."""
    posts = [post for post in web.posts if post.path == path]
    while len(posts) < number:
        every = await web.wait_for_posts(len(web.posts) + 1)
        posts = [post for post in every if post.path == path]
    return [json.loads(post.body)["status"] for post in posts]


async def test_two_tabs_show_one_cancellation_and_one_deletion(here: World) -> None:
    _, user, _ = here
    async with long_job(user) as job, signed_in(here) as (one, page):
        other = await one.page(f"/jobs/{job}")
        await other.get_by_role("button", name="Cancel").click()
        await other.get_by_role("dialog").get_by_role("button", name="Cancel").click()

        for tab in (page, other):
            shown = tab.locator(".job, .job-head").filter(has_text=job).locator(".status")
            await expect(shown).to_have_text("Cancelled", timeout=PATIENCE)
        assert (await user.client.status(job))["status"] == "CANCELLED"

        one.expected = ("404",)
        deleted = await user.client.run(long_training(user))
        await other.goto(f"{one.url}/#/jobs/{deleted}")
        await expect(other.locator(".job-head")).to_contain_text(deleted)
        await expect(page.locator(".job").filter(has_text=deleted)).to_be_visible()
        await user.client.delete(deleted)
        await expect(other.get_by_text("There is no such job")).to_be_visible(timeout=PATIENCE)
        await expect(page.locator(".job").filter(has_text=deleted)).to_have_count(0)

        ended = await user.client.run(long_training(user))
        await user.client.cancel(ended)
        await other.goto(f"{one.url}/#/jobs/{ended}")
        third = await one.page(f"/jobs/{ended}")
        await third.get_by_role("button", name="Delete").click()
        await third.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(third.get_by_text("The job is deleted.")).to_be_visible()
        await expect(other.get_by_text("There is no such job")).to_be_visible()
        for tab in (page, third):
            await expect(tab.locator(".jobs")).to_be_visible()
            await expect(tab.locator(".job").filter(has_text=ended)).to_have_count(0)


async def test_a_lost_connection_is_said_and_made_good(here: World) -> None:
    _, user, _ = here
    async with signed_in(here) as (one, page):
        one.expected = ("ERR_INTERNET_DISCONNECTED",)
        await one.context.set_offline(offline=True)
        async with long_job(user) as job:
            pass
        await asyncio.sleep(CUT_SECONDS)
        await one.context.set_offline(offline=False)

        shown = page.locator(".job").filter(has_text=job).locator(".status")
        await expect(shown).to_have_text("Cancelled", timeout=PATIENCE)


CLAIMS = {
    "/": "No jobs yet", "/draw": "Nothing drawn yet", "/gallery": "No images yet",
    "/system": "Nothing needs you",
}  # fmt: skip
"""What each screen says when it has found nothing."""


async def test_what_could_not_be_read_is_not_said_to_be_empty(here: World) -> None:
    services, _, chromium = here
    lists = re.compile(r"/jobs\?|/admin/")
    async with keys_of(services) as keys:
        await keys.add(a_key("new-key", *CLIENT_SCOPES, "operate"))
    async with visit(chromium, services.first("gateway").url) as one:
        one.expected = ("ERR_FAILED",)
        page = await one.page()
        problem = page.get_by_role("alert").filter(has_text="The server does not answer")
        await page.route(lists, lambda route: route.abort())
        await sign_in(page, "new-key")
        for screen, claim in CLAIMS.items():
            await page.goto(f"{one.url}/#{screen}")
            await expect(problem).to_be_visible()
            await expect(page.get_by_text(claim)).to_have_count(0)
        await page.unroute(lists)
        for screen, claim in CLAIMS.items():
            await page.goto(f"{one.url}/#{screen}")
            await expect(page.get_by_text(claim)).to_be_visible()
            await expect(problem).to_have_count(0)
        await page.route(lists, lambda route: route.abort())
        for screen, claim in CLAIMS.items():
            await page.goto(f"{one.url}/#{screen}")
            await expect(problem).to_be_visible()
            await expect(page.get_by_text(claim)).to_have_count(0)


async def test_a_key_that_is_disabled_costs_nothing_that_was_typed(here: World) -> None:
    """The page asks for another key above the form, and goes on with it."""
    services, user, chromium = here
    secret, prompt = "a secret of the bucket", "zorblat at sea"
    async with (
        keys_of(services) as keys,
        visit(chromium, services.first("gateway").url) as one,
    ):
        await keys.add(a_key("lent-key"))
        one.expected = ("401", "422")
        page = await one.page("/new")
        await page.get_by_label("API key").fill("no-key")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_have_text("This key is not valid here.")
        await sign_in(page, "lent-key", heading="New job")

        await page.get_by_label("Prompts for samples").fill(prompt)
        await page.get_by_text("Your bucket, webhook and limits").click()
        await page.locator("#s3Config-accessSecret").fill(secret)
        await expect(page.get_by_text("Needed with a bucket.")).to_have_count(3)
        for field, value in (("accessId", "an-id"), ("bucketName", "mine")):
            await page.locator(f"#s3Config-{field}").fill(value)
        await page.locator("#s3Config-endpointUrl").fill("http://10.9.8.7:9000")
        await expect(page.get_by_text("Needed with a bucket.")).to_have_count(0)
        await page.locator("summary").filter(has_text="The same without").click()
        for tool in ("Command line", "Python", "curl"):
            await page.get_by_text(tool, exact=True).click()
            await expect(page.locator(".equivalents pre")).to_contain_text("10.9.8.7")
            assert secret not in await page.locator(".equivalents pre").inner_text()
        kept = await page.evaluate("JSON.stringify([localStorage, sessionStorage])")
        assert prompt in kept
        assert secret not in kept
        await one.assert_accessible(page)

        assert await keys.disable("lent-key", 1.0)
        address = user.request()["input"]["train"]["data_url"]
        await page.get_by_label("Or the address of a zip").fill(address)
        await page.get_by_role("button", name="Check", exact=True).click()
        await expect(page.get_by_role("dialog")).to_contain_text("Your session has ended")
        await one.assert_accessible(page)
        await page.keyboard.press("Escape")
        await page.get_by_label("API key").fill(API_KEY)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.get_by_label("Prompts for samples")).to_have_value(prompt)
        await expect(page.locator("#s3Config-accessSecret")).to_have_value(secret)

        await page.get_by_role("button", name="Check", exact=True).click()
        await expect(page.get_by_text("Pictures and captions")).to_be_visible(timeout=PATIENCE)
        await page.get_by_role("button", name="Start the training").click()
        beside = page.locator("#s3Config-endpointUrl-mistake")
        await expect(beside).to_contain_text("private address")
        assert secret not in page.url


@asynccontextmanager
async def keys_of(services: Services) -> AsyncIterator[SqlKeyStore]:
    url = services.environment["EVERYDREAM_DATABASE_URL"]
    async with closing(Database.open(url)) as database:
        yield SqlKeyStore(database)


def a_key(key: str, *scopes: Scope) -> StoredKey:
    """Its name is the key itself."""
    may = scopes or CLIENT_SCOPES
    return StoredKey(digest=digest_of(key), name=key, scopes=may, created_at=1.0)


async def test_of_many_jobs_and_samples_a_page_has_few(here: World) -> None:
    """Their key may look at them alone: it is offered nothing else."""
    services, _, chromium = here
    folder = services.environment["EVERYDREAM_STORE_URL"].removeprefix("file://")
    owner, store = digest_of("busy-key"), FolderStore(Path(folder), public_url="", key="")
    database_url = services.environment["EVERYDREAM_DATABASE_URL"]
    async with keys_of(services) as keys:
        await keys.add(a_key("busy-key", "read"))
    await add_jobs(database_url, owner, 10_000)
    grid = await add_grid(database_url, store, owner, rows=50, columns=10)

    async with visit(chromium, services.first("gateway").url) as one:
        page = await one.page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(urlsplit(request.url).path))
        await sign_in(page, "busy-key")
        jobs = page.locator(".job")
        await expect(jobs).to_have_count(50)
        for screen in ("new", "system"):
            await page.evaluate(f"location.hash = '#/{screen}'")
            await expect(page).to_have_title("Jobs · EveryDream")
        await expect(page.get_by_role("navigation", name="Main")).to_have_text("JobsDrawGallery")
        newest = await jobs.last.locator(".id").text_content()
        await page.get_by_role("link", name="Older jobs").click()
        await expect(jobs.filter(has_text=newest)).to_have_count(0)
        await page.get_by_label("Status").select_option("FAILED")
        await expect(page.locator(".job .failed")).to_have_count(50)
        await page.get_by_label("Kind").select_option("Drawing")
        await expect(page.get_by_text("No job matches.")).to_be_visible()
        await page.go_back()
        await expect(jobs).to_have_count(50)
        await page.go_back()
        await page.get_by_role("link", name="Newest jobs").click()
        await page.get_by_label("Search by id").fill(grid[:13].upper())
        await expect(jobs).to_have_count(1)
        assert await elements_of(page) < 1000
        assert not [path for path in asked if "/status" in path]

        await jobs.get_by_role("link").click()
        rows = page.locator(".sample-grid tbody tr")
        await expect(rows).to_have_count(50)
        await page.wait_for_load_state("networkidle")
        assert len(thumbnails(asked)) < 200
        assert await elements_of(page) < 2000
        for row in range(0, 50, 5):
            await rows.nth(row).scroll_into_view_if_needed()
        await rows.last.scroll_into_view_if_needed()
        await expect_loaded(rows.last.locator("img").last)
        await page.go_back()
        await page.go_forward()
        await expect(rows).to_have_count(50)
        await expect_loaded(rows.first.locator("img").first)
        fetched = thumbnails(asked)
        assert len(fetched) == len({*fetched})  # though each answer has signed them anew
        await assert_no_column_is_hidden(page)


SHARES_SEEN = """
(box) => [...box.querySelectorAll("tbody tr:first-child img")].map((each) => {
  const { left, width } = each.getBoundingClientRect();
  return (box.getBoundingClientRect().right - left) / width;
})
"""
"""How much of each sample of a row is seen; more than 1: all."""


async def assert_no_column_is_hidden(page: Page) -> None:
    """A window that has no room for all halves one at its edge, which tells that there are more."""
    box = page.locator(".grid-scroll")
    for width in (360, 800, 1280):
        await page.set_viewport_size({"width": width, "height": 740})
        shares = await box.evaluate(SHARES_SEEN)
        assert sum(0.25 < share < 0.75 for share in shares) == 1, shares
    await page.set_viewport_size({"width": 3840, "height": 2160})
    assert await box.evaluate("each => each.scrollWidth - each.clientWidth") <= 0


async def elements_of(page: Page) -> int:
    return int(await page.evaluate("document.querySelectorAll('*').length"))


def thumbnails(paths: list[str]) -> list[str]:
    return [path for path in paths if path.endswith(".webp")]


async def expect_loaded(image: Locator) -> None:
    width = await image.evaluate("async each => (await each.decode(), each.naturalWidth)")
    assert width > 0


async def test_an_operator_sees_a_message_that_nobody_could_read_and_deletes_it(
    here: World,
) -> None:
    services, _, _ = here
    async with signed_in(here) as (one, page):
        await page.get_by_role("link", name="System").click()
        await expect(page.get_by_text("No dead letters.")).to_be_visible()
        free = page.locator(".numbers div").filter(has_text="Trainer")
        await expect(free).to_contain_text("1")

        async with plain_channel(services.environment["EVERYDREAM_AMQP_URL"]) as channel:
            await channel.default_exchange.publish(aio_pika.Message(b"noise"), FETCHER.name)
        delete = page.get_by_role("button", name="Delete: unreadable message on fetcher")
        async with asyncio.timeout(PATIENCE / 1000):
            while not await delete.is_visible():
                await page.get_by_role("button", name="Refresh").click()
                await page.wait_for_load_state("networkidle")
        await expect(page.get_by_text("1 message was given up.")).to_be_visible()
        await one.assert_accessible(page)
        await delete.click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.get_by_text("No dead letters.")).to_be_visible()
        await page.reload()
        await expect(page.get_by_text("Nothing needs you.")).to_be_visible()


SCREENS = {
    "/": ".job, .empty", "/new": ".drop-zone", "/draw": ".drawing, .empty",
    "/gallery": ".job-pictures, .empty", "/system": ".findings",
}  # fmt: skip
"""Each with what shows that its content is there."""


async def test_every_screen_fits_a_phone_and_says_nothing_serious_to_axe(here: World) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    async with signed_in(here, **phone) as (one, page):
        for screen, read in SCREENS.items():
            await page.goto(f"{one.url}/#{screen}")
            await page.locator(read).first.wait_for()
            await expect(page.locator("[aria-disabled=true]")).to_have_count(0)
            await one.assert_keyboard(page)
            await page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
            await assert_fits(page, screen)
            await one.assert_accessible(page)
        await page.goto(f"{one.url}/#/jobs/..%2Fadmin")
        await expect(page.get_by_text("There is no such job")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        await one.assert_keyboard(page)
        await one.assert_accessible(page)


async def assert_fits(page: Page, screen: str) -> None:
    """Also at a zoom of 400 %; there nothing stays on the screen that would fill it."""
    for width, height in ((200, 400), (320, 256), (360, 740)):
        await page.set_viewport_size({"width": width, "height": height})
        overflow, position = await page.evaluate(
            """() => {
              const { scrollWidth, clientWidth } = document.documentElement;
              const { position } = getComputedStyle(document.querySelector(".bar"));
              return [scrollWidth - clientWidth, position];
            }"""
        )
        assert overflow <= 0, (screen, width)
        assert position == ("sticky" if height > 416 else "static")


async def test_the_page_is_small_and_asks_for_nothing_else(here: World) -> None:
    services, _, _ = here
    async with aiohttp.ClientSession(services.first("gateway").url) as session:
        async with session.get("/", headers={"Accept": "text/html"}) as answer:
            page = await answer.text()
        files = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page)
        size = 0
        for file in files:
            async with session.get(file) as answer:
                assert answer.status == 200
                assert "immutable" in answer.headers["Cache-Control"]
                size += len(gzip.compress(await answer.read()))
    assert 0 < size < MOST_BYTES
