"""Staging models in tests, and a small hub to fetch them from."""

import json
import zipfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from services.fetcher.models.stage import ModelReference, ModelStager
from services.fetcher.progress_meter import ProgressMeter
from shared.adapters.folder import FolderStore
from shared.diffusion.loading import Parts, load
from shared.diffusion.single_file import original_layout
from shared.request import LoraShape
from shared.storage.folders import download_folder
from tests.support.in_process_parser import InProcessReader
from tests.support.servers.process import HOST

LOOPBACK = frozenset({HOST})
COMMIT = "5" * 40


class Stage:
    """Stages models, and loads them as the trainer does."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder / "store", public_url="http://x", key="k" * 32)
        self.home = folder / "home"
        self.folder = folder
        self.number = 0
        self.reported: list[dict[str, Any]] = []
        self.warnings: tuple[str, ...] = ()
        """Of the newest model."""
        self.lora: LoraShape | None = None
        self.lora_base = ""
        self.models = self.of("tiny")

    def of(self, configured: str, private: Collection[str] = ()) -> ModelStager:
        return ModelStager(
            self.store,
            configured=configured,
            home=self.home,
            allowed=LOOPBACK,
            private=frozenset(private),
        )

    async def __call__(
        self,
        asked: str,
        *,
        subfolder: str | None = None,
        models: ModelStager | None = None,
        base: str | None = None,
    ) -> str:
        self.number += 1
        scratch = self.folder / f"scratch-{self.number}"
        scratch.mkdir()
        reference = ModelReference(asked, "input.model", subfolder, base, "input.base")
        meter = ProgressMeter(
            "downloading", lambda **numbers: self.reported.append(numbers), lambda: None
        )
        staged = await (models or self.models).stage(
            reference, scratch, meter, InProcessReader(), own=f"jobs/{self.number}/model"
        )
        self.warnings, self.lora = staged.warnings, staged.lora
        self.lora_base = staged.lora_base
        return staged.prefix

    async def loaded(self, prefix: str) -> Parts:
        """The model as the trainer loads it from the store."""
        folder = self.folder / f"loaded-{self.number}"
        await download_folder(self.store, prefix, folder)
        return load(folder)


def same(one: Parts, other: Parts) -> bool:
    """Whether two models have the same weights, bit by bit."""
    first, second = original_layout(one), original_layout(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def tensors_of(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in original_layout(parts).items()}


class Hub:
    """The part of the hub's interface that its library needs, for one repository."""

    def __init__(self, folder: Path, repository: str = "org/model") -> None:
        self.folder = folder
        self.repository = repository
        self.url = ""
        self.status = 200
        self.tree_status = 200
        self.tokens: set[str | None] = set()
        self.private = False
        self.revisions: set[str] = set()
        self.fetched: list[str] = []
        self.listed_bytes: dict[str, int] = {}
        """Of files that are listed with another size than theirs."""

    async def revision(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        if self.status != 200:
            return web.Response(status=self.status, headers=self._error())
        is_hidden = self.private and "Authorization" not in request.headers
        if request.match_info["repository"] != self.repository or is_hidden:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        self.revisions.add(request.match_info["revision"])
        siblings = [
            {"rfilename": name, "size": self.listed_bytes.get(name, path.stat().st_size)}
            for name, path in ((name, self.folder / name) for name in self._names())
        ]
        return web.json_response({"id": self.repository, "sha": COMMIT, "siblings": siblings})

    def _error(self) -> dict[str, str]:
        return {"X-Error-Code": "GatedRepo"} if self.status == 403 else {}

    async def tree(self, _: web.Request) -> web.Response:
        if self.tree_status != 200:
            return web.Response(status=self.tree_status)
        return web.json_response(
            [
                {
                    "type": "file",
                    "path": name,
                    "size": (self.folder / name).stat().st_size,
                    "oid": "1",
                }
                for name in self._names()
            ]
        )

    async def file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["path"]
        self.fetched.append(name)
        headers = {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": COMMIT}
        return web.FileResponse(self.folder / name, headers=headers)

    def _names(self) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)


@asynccontextmanager
async def running_hub(folder: Path, repository: str = "org/model") -> AsyncIterator[Hub]:
    """Serve the files of a folder as a model."""
    hub = Hub(folder, repository)
    app = web.Application()
    app.router.add_get("/api/models/{repository:.+}/revision/{revision}", hub.revision)
    app.router.add_get("/api/models/{repository:.+}/tree/{revision}", hub.tree)
    app.router.add_get("/{repository:[^/]+/[^/]+}/resolve/{revision}/{path:.+}", hub.file)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    hub.url = f"http://{HOST}:{runner.addresses[0][1]}"
    yield hub
    await runner.cleanup()


def copied(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    assert json.loads((folder / "model_index.json").read_text())
    return target
