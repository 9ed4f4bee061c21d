"""Strangers' files are read in a child of the fetcher: what it may take, and what ends it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pillow_heif
import psutil
import pytest
from PIL import Image

from services.fetcher import parser as parser_module
from services.fetcher.limits import Limits, dataset_limits
from services.fetcher.order import ParseDataset, ParsedDataset
from services.fetcher.parser import Parser, check_left
from shared.child.parent import Child, ChildDied, start_ready
from shared.errors import Passing, Refused
from shared.request import Train
from tests.support.services import ROOT
from tests.support.workers import until_gone

PLENTY = Limits(processor_seconds=1000.0)
HUNG, LARGE_HUNG = 120.0, 600.0
"""Seconds; the second for a very large picture, with others' work on the same machine."""
FAST_AVIF = {"quality": 50, "subsampling": "4:4:4", "speed": 10, "max_threads": 2}
FAST_HEIC = {
    "quality": 50, "chroma": 444, "tile_size": 1024, "enc_params": {"preset": "ultrafast"}
}  # fmt: skip
"""How a very large picture is encoded; with as many samples of colour as of light, which takes the
most memory to decode. HEIC in tiles, as by phones: libde265 reads no single one of this size."""


@pytest.fixture
async def parser(tmp_path: Path) -> AsyncIterator[Parser]:
    parser = Parser(tmp_path / "scratch")
    yield parser
    await parser.close()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(number: int, width: int = 64, height: int = 48) -> dict[str, bytes]:
    return {
        f"{index}.png": encoded(Image.new("RGB", (width, height), (index, 0, 0)), "PNG")
        for index in range(number)
    }


async def parse(
    parser: Parser,
    folder: Path,
    files: dict[str, bytes],
    limits: Limits = PLENTY,
    keepalive: Callable[[], None] = lambda: None,
    *,
    hung: float = HUNG,
) -> ParsedDataset:
    with zipfile.ZipFile(folder / "data.zip", "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    for name in ("dataset", "pages"):
        (folder / name).mkdir()
    order = ParseDataset(
        archive=str(folder / "data.zip"), folder=str(folder / "dataset"),
        pages=str(folder / "pages"),
        train=Train(data_url="https://example.com/data.zip"), seed=1, shown="the upload",
    )  # fmt: skip
    async with asyncio.timeout(hung), parser.reader() as reader:
        return await reader.parse(order, limits, ParsedDataset, keepalive=keepalive)


async def refusal(parser: Parser, folder: Path, files: dict[str, bytes], limits: Limits) -> str:
    with pytest.raises(Refused) as refused:
        await parse(parser, folder, files, limits)
    return str(refused.value)


async def waiting_pid(parser: Parser) -> int:
    """The process of the child that gets the next order."""
    await parser.prepare()
    assert parser._standby is not None
    return (await asyncio.shield(parser._standby)).pid


async def test_what_the_child_leaves_is_what_it_names(parser: Parser, tmp_path: Path) -> None:
    parsed = await parse(parser, tmp_path, {**pictures(2), "readme.md": b"hello"})

    assert parsed.files == ("manifest.json", "checked.json", "000000.png", "000001.png")
    assert parsed.pages == ("page-00001.json", "000001.webp", "000002.webp")
    assert parsed.report.images == 2
    check_left(tmp_path / "dataset", parsed.files)
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_the_next_job_gets_another_child(parser: Parser, tmp_path: Path) -> None:
    pids = []
    for number in range(2):
        pids.append(await waiting_pid(parser))
        (tmp_path / str(number)).mkdir()
        await parse(parser, tmp_path / str(number), pictures(1))

    assert len(set(pids)) == 2
    assert not psutil.pid_exists(pids[0])


# --- Limits


async def test_a_picture_that_takes_too_much_memory_is_named_with_the_limit(
    parser: Parser, tmp_path: Path
) -> None:
    large = encoded(Image.new("L", (9000, 9000)), "PNG")
    limits = Limits(processor_seconds=1000.0, memory_bytes=384 << 20)

    text = await refusal(parser, tmp_path, {**pictures(1), "large.png": large}, limits)

    assert text == "large.png: reading it takes more than 0.375 GiB of memory"


async def test_pictures_that_take_too_much_processor_time_are_stopped_by_name(
    parser: Parser, tmp_path: Path
) -> None:
    large = encoded(Image.new("L", (9000, 9000)), "PNG")

    files = {f"{number}.png": large for number in range(20)}
    text = await refusal(parser, tmp_path, files, Limits(processor_seconds=0.0, pixels=10**10))

    assert ".png: reading came to more than 0 s of processor time" in text


async def test_a_file_that_would_grow_too_large_is_named_with_the_limit(
    parser: Parser, tmp_path: Path
) -> None:
    limits = Limits(processor_seconds=1000.0, file_bytes=1 << 20)

    text = await refusal(parser, tmp_path, {"a.png": bytes(2 << 20)}, limits)

    assert text == "a.png: more than 1048576 bytes would come out of it"


async def test_where_the_system_does_not_limit_memory_the_parent_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parser_module, "SYSTEM_LIMITS_MEMORY", False)
    child = await start_ready(parser_module.CHILD)

    async with asyncio.timeout(HUNG):
        await parser_module._watch_memory(
            child, Limits(processor_seconds=1.0, memory_bytes=1 << 20)
        )

    await child.kill()
    assert not psutil.pid_exists(child.pid)


def test_more_bytes_may_have_more_pixels_and_take_more_time() -> None:
    small, large = dataset_limits(4500), dataset_limits(1 << 30)

    assert small.pixels < 10 * 89_000_000
    assert large.pixels > 10_000 * 20_000_000
    assert small.processor_seconds < 300 < large.processor_seconds


# --- Deaths


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (signal.SIGABRT, Refused, r"0.png: reading it takes more than 3 GiB of memory"),
        (signal.SIGSEGV, Refused, r"0.png: reading it crashes its decoder \(SIGSEGV\)"),
        (signal.SIGXCPU, Refused, r"0.png: reading came to more than 1000 s"),
        (signal.SIGKILL, Passing, r"SIGKILL.* while it read 0.png"),
    ],
)
async def test_a_child_that_dies_tells_by_its_signal_whose_fault_it_is(
    parser: Parser, tmp_path: Path, number: signal.Signals, error: type[Exception], text: str
) -> None:
    pid = await waiting_pid(parser)
    signs: list[int] = []

    def kill_at_the_first_picture() -> None:
        signs.append(1)
        if len(signs) == 4:  # unpacking; the archive; its entry; the next entry or the picture
            os.kill(pid, number)

    with pytest.raises(error, match=text):
        await parse(parser, tmp_path, {"0.png": noise(2000)}, keepalive=kill_at_the_first_picture)


def noise(side: int) -> bytes:
    """A picture whose decoding takes long enough to be interrupted."""
    return encoded(Image.effect_noise((side, side), 64), "PNG")


async def test_reading_is_limited_by_the_system_and_cancelled_ends_with_its_child_at_once(
    parser: Parser, tmp_path: Path
) -> None:
    pid = await waiting_pid(parser)
    begun = asyncio.Event()
    files = dict.fromkeys([f"{number}.png" for number in range(20)], noise(2000))
    parsing = asyncio.create_task(parse(parser, tmp_path, files, keepalive=begun.set))
    await begun.wait()
    child = psutil.Process(pid)
    if sys.platform == "linux":
        kinds = (psutil.RLIMIT_AS, psutil.RLIMIT_FSIZE, psutil.RLIMIT_NOFILE, psutil.RLIMIT_CORE)
        soft = [child.rlimit(kind)[0] for kind in kinds]
        assert soft == [PLENTY.memory_bytes, PLENTY.file_bytes, 64, 0]
        assert 1000 < child.rlimit(psutil.RLIMIT_CPU)[0] < 1100
    assert child.nice() > psutil.Process().nice()

    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing

    assert not psutil.pid_exists(pid)


async def test_a_child_that_goes_on_computing_gives_way_to_everything_else(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser_module, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(parser_module, "BRIEF_SECONDS", 0.3)
    child, begun = psutil.Process(await waiting_pid(parser)), asyncio.Event()
    files = dict.fromkeys([f"{number}.png" for number in range(50)], noise(2000))
    parsing = asyncio.create_task(parse(parser, tmp_path, files, keepalive=begun.set))
    await begun.wait()
    at_first, used = child.nice(), sum(child.cpu_times()[:2])

    while child.nice() == at_first:
        assert not parsing.done()
        await asyncio.sleep(0.01)

    assert child.nice() == max(parser_module.LOW_PRIORITY, at_first)
    assert sum(child.cpu_times()[:2]) - used > 0.3 / 2
    parsing.cancel()
    await asyncio.wait((parsing,))


async def test_the_child_has_one_thread_however_many_cores_there_are(parser: Parser) -> None:
    assert psutil.Process(await waiting_pid(parser)).num_threads() == 1


async def test_a_child_that_died_while_it_waited_is_replaced(
    parser: Parser, tmp_path: Path
) -> None:
    pid = await waiting_pid(parser)
    os.kill(pid, signal.SIGKILL)
    await until_gone(pid)

    assert (await parse(parser, tmp_path, pictures(1))).report.images == 1


NO_START = pytest.mark.parametrize(
    "failure",
    [ChildDied(-signal.SIGKILL), BlockingIOError("no process")],
    ids=["died", "no process"],
)


def fail_to_start(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> None:
    """Each of these ends the start of a child; later ones start."""

    async def start(*given: Any, **options: Any) -> Child:
        if failures:
            raise failures.pop()
        return await start_ready(*given, **options)

    monkeypatch.setattr(parser_module, "start_ready", start)


@NO_START
async def test_an_idle_fetcher_starts_another_child_after_one_that_could_not_start(
    parser: Parser, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    fail_to_start(monkeypatch, [failure, failure])

    for _ in range(2):
        with pytest.raises(type(failure)):
            await parser.prepare()
    assert psutil.pid_exists(await waiting_pid(parser))


@NO_START
async def test_a_job_does_not_pay_for_a_waiting_child_that_could_not_start(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    fail_to_start(monkeypatch, [failure])
    with pytest.raises(type(failure)):
        await parser.prepare()

    assert (await parse(parser, tmp_path, pictures(1))).report.images == 1


# --- What it has, and what it leaves


async def test_the_child_has_no_secret_and_no_network(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERYDREAM_SECRET_KEY", "a-secret")
    pid = await waiting_pid(parser)

    environment = "".join(psutil.Process(pid).environ())
    assert "EVERYDREAM" not in environment
    assert parser._standby is not None
    if parser._standby.result().offline:
        assert network_of(os.getpid()) != network_of(pid)


def network_of(pid: int) -> str:
    """The network namespace of a process."""
    return str(Path(f"/proc/{pid}/ns/net").readlink())


@pytest.mark.parametrize("leave", ["link", "file", "nothing"])
def test_a_folder_with_other_files_than_are_named_is_not_taken(tmp_path: Path, leave: str) -> None:
    (tmp_path / "a").write_bytes(b"1")
    if leave == "link":
        (tmp_path / "b").symlink_to("/etc/passwd")
    elif leave == "file":
        (tmp_path / "c").write_bytes(b"1")

    with pytest.raises(Passing, match="other files than it names"):
        check_left(tmp_path, ["a", "b"])


def test_the_parent_loads_nothing_that_reads_strangers_files() -> None:
    code = (
        "import sys, services.fetcher.__main__\n"
        "print({'PIL', 'numpy', 'yaml', 'tokenizers'} & sys.modules.keys()"
        " or [name for name in sys.modules if name.startswith('services.fetcher.parsing')])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"


def test_the_child_loads_nothing_that_only_a_service_needs() -> None:
    code = (
        "import sys, services.fetcher.parsing.child, services.fetcher.parsing.tasks\n"
        "print({'asyncio', 'structlog', 'rich', 'aiohttp', 'aio_pika'} & sys.modules.keys())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "set()"


# --- Honest files


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("PNG", "I;16", {"compress_level": 1}),
        ("WEBP", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
        ("AVIF", "RGB", FAST_AVIF),
        ("AVIF", "RGBA", FAST_AVIF),
        ("HEIF", "RGB", FAST_HEIC),
    ],
)
async def test_every_honest_picture_of_89_megapixels_is_read(
    parser: Parser, tmp_path: Path, kind: str, mode: str, options: dict[str, object]
) -> None:
    large = encoded(textured(mode, 9430), kind, **options)
    files = {"large": b"", f"large.{kind.lower()}": large}
    limits = dataset_limits(len(large))

    parsed = await parse(parser, tmp_path, files, limits, hung=LARGE_HUNG)

    assert parsed.report.images == 1, parsed.report.skipped


def textured(mode: str, side: int) -> Image.Image:
    """A picture with noise in some places: of one colour alone, some encoders make nothing."""
    image = Image.new(mode, (side, side))
    if mode in ("RGB", "RGBA"):
        noisy = Image.effect_noise((256, 256), 90).convert("RGB")
        if mode == "RGBA":
            noisy.putalpha(Image.linear_gradient("L"))
        for left in range(0, side, 2048):
            for top in range(0, side, 2048):
                image.paste(noisy, (left, top))
    return image
