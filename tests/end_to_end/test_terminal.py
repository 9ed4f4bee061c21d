"""The command in real terminals, and the screens of docs/command-line.md.

With ``SCREENS_PAGE`` set, that page gets the screens that were seen: ``make screens``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from random import Random

import pytest
from pillow_heif import register_heif_opener
from rich.cells import cell_len

from everydream import drawings
from tests.end_to_end.story import API_KEY, PATIENCE, SECRET_KEY
from tests.support.servers.process import free_port
from tests.support.services import WARM, environment_at, services_in_a_folder
from tests.support.terminal import Terminal, terminal

pytestmark = pytest.mark.usefixtures("warm_children")

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
BLOCK = re.compile(r"<!-- screen: (\w+) -->\n```\n(.*?)```\n", re.DOTALL)
BAR = re.compile(r"^\[[#-]+\] +\d+ %")
PROMPT = drawings.CONCEPTS[0].captions[0]
TRAIN = {
    "resolution": 256, "batch_size": 4, "max_epochs": 60, "lr": 1e-4, "useadam8bit": False,
    "sample_steps": 1000,
}  # fmt: skip
WIDE = 300
"""Columns, in which no line of a documented screen is wrapped."""
PHOTOS = {
    f"{PROMPT}_1.png": "PNG", f"{PROMPT}_2.png": "PNG", "IMG_2041.jpg": "JPEG",
    "IMG_2042.heic": "HEIF",
}  # fmt: skip
DRAW = ("--prompt", PROMPT, "--size", "128", "--steps", "2")


def shape(text: str) -> str:
    """A screen without what differs from run to run."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "JOB", text)
    text = re.sub(r"\[[#-]+\] +\d+ %", "BAR", text)
    text = re.sub(r"a moment|\d+ (s|min|h|d)\b( \d+ (min|h)\b)?", "TIME", text)
    text = re.sub(r"^training: .*", "training", text)  # between two steps something is saved
    # A trainer that has just started may not have tested its device yet.
    text = re.sub(
        r"(, about TIME)? of training \((not known yet|estimated): .*?\)",
        ", about TIME of training (RATE)", text,
    )  # fmt: skip
    text = re.sub(r"\d+(\.\d+)*", "9", text)
    text = re.sub(r", (last )?loss 9", "", text)  # there is none yet right after a start
    text = re.sub(r"\b9 (epoch|step)\b", r"9 \1s", text)  # it is stopped after any
    return text.strip()


class Watch:
    """Looks at a terminal again and again: its live lines, and that nothing is left of old ones."""

    def __init__(self, shown: Terminal) -> None:
        self._shown = shown
        self.screens: dict[str, str] = {}

    def see(self) -> None:
        """Check what is on the screen now, and keep the newest screen of each kind."""
        lines = self._shown.lines
        bars = [number for number, line in enumerate(lines) if BAR.match(line)]
        assert len(bars) <= 1, f"a ghost:\n{self._shown.text}"
        if not bars:
            return
        live = lines[bars[0] - 1 :]
        if len(live) < 4:
            return  # in the midst of being drawn
        assert len(live) == 4, f"more than four lines:\n{self._shown.text}"
        assert all(cell_len(line) <= 58 for line in live), live
        kind = "lost" if "no answer from" in live[-1] else "training"
        is_whole = kind == "lost" or "left, about" in live[-1]
        if is_whole and (live[0] == "training" or kind not in self.screens):
            self.screens[kind] = "\n".join(live)

    async def until(self, words: str) -> None:
        await self._shown.until(lambda lines: words in "\n".join(lines), PATIENCE, self.see)

    async def end(self) -> int | None:
        return await self._shown.end(PATIENCE, self.see)


def write_screens(page: Path, screens: dict[str, str]) -> None:
    text = BLOCK.sub(
        lambda block: f"<!-- screen: {block[1]} -->\n```\n{screens[block[1]]}\n```\n",
        page.read_text(),
    )
    page.write_text(text)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with photos as they come from a phone, and with a recipe beside them."""
    register_heif_opener()
    (tmp_path / "photos").mkdir()
    for number, (name, kind) in enumerate(PHOTOS.items()):
        image = drawings.draw_concept(drawings.CONCEPTS[0], Random(number), 256)
        image.save(tmp_path / "photos" / name, kind)
    whole = (tmp_path / "photos" / "IMG_2041.jpg").read_bytes()
    (tmp_path / "photos" / "IMG_2043.jpg").write_bytes(whole[:400])
    (tmp_path / "photos" / "IMG_2044.tiff").write_bytes(b"tiff")
    (tmp_path / "recipe.json").write_text(json.dumps(TRAIN))
    return tmp_path


@pytest.mark.timeout(900)
async def test_terminals_of_every_width_show_a_job_to_its_end_though_the_server_is_killed(
    desk: Path,
) -> None:
    """One job, checked first; it runs in one terminal, which is resized, is followed in two others
    and stopped in a fourth."""
    port = str(free_port())
    settings = {
        "EVERYDREAM_BASE_MODEL": "tiny", "EVERYDREAM_API_KEYS": API_KEY, "EVERYDREAM_PORT": port,
        "EVERYDREAM_SECRET_KEY": SECRET_KEY, "EVERYDREAM_HEARTBEAT": "2", "OMP_NUM_THREADS": "",
        "EVERYDREAM_RESUME_EVERY": "5",
    }  # fmt: skip
    client = environment_at(desk) | {
        "EVERYDREAM_URL": f"127.0.0.1:{port}",
        "EVERYDREAM_API_KEY": API_KEY,
    }
    serve = (*WARM, "serve")
    run = ("everydream", "run", "photos", "--config", "recipe.json", *DRAW)
    async with services_in_a_folder(settings) as services:
        server = await services.start("gateway", command=serve)
        async with terminal(run, columns=WIDE, folder=desk, environment=client) as running:
            watch = Watch(running)
            await watch.until("step ")
            shown = running.text
            report = shown[: shown.index("\n", shown.index("\njob ") + 1)]
            (job,) = re.findall(r"^job (\S+)$", report, re.MULTILINE)
            follow = ("everydream", "follow", job)
            async with (
                terminal(
                    (*follow, "--output", "narrow"), columns=60, folder=desk, environment=client
                ) as narrow,
                terminal(
                    (*follow, "--output", "wide"), columns=WIDE, folder=desk, environment=client
                ) as wide,
            ):
                others = [Watch(narrow), Watch(wide)]
                await asyncio.gather(*(each.until("step ") for each in others))
                for columns in (60, 140, 80):
                    running.resize(columns)
                    for _ in range(10):
                        await running.read()
                        watch.see()
                await watch.until("sample saved at")
                await server.kill()
                await asyncio.gather(*(each.until("no answer from") for each in (watch, *others)))
                home = server.environment["EVERYDREAM_HOME"]
                services.begin("gateway", settings | {"EVERYDREAM_HOME": home}, serve)
                await watch.until("left, about")
                stop = ("everydream", "stop", job)
                async with terminal(stop, columns=140, folder=desk, environment=client) as stopping:
                    assert await Watch(stopping).end() == 0, stopping.text
                statuses = await asyncio.gather(*(each.end() for each in (watch, *others)))

            assert statuses == [0, 0, 0], running.text
            for each in (running, narrow, wide):
                assert not any(BAR.match(line) for line in each.lines), each.text
                assert each.lines.count("COMPLETED") == 1, each.text
                assert each.lines.count("4 pictures used; 1 left out:") == 1, each.text
            assert running.lines[0].startswith("not uploaded: 1 .tiff")
            assert "train on exactly" not in running.text
            end = wide.lines[wide.lines.index("COMPLETED") :]
            assert any(line.startswith("warning: stopped on request after step") for line in end)
            screens = watch.screens | {
                "report": report,
                "stop": "\n".join([f"$ {' '.join(stop)}", *stopping.lines]),
                "end": "\n".join(end),
            }
    if page := os.environ.get("SCREENS_PAGE"):
        usual = {name: text.replace(f":{port}", ":8080") for name, text in screens.items()}
        write_screens(Path(page), usual)
    documented = dict(BLOCK.findall(PAGE.read_text()))
    assert {name: shape(text) for name, text in documented.items()} == {
        name: shape(text) for name, text in screens.items()
    }, "docs/command-line.md shows other screens: make screens"
