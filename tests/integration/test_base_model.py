"""From whatever a request calls its base model to a folder in the store that the trainer loads."""

import json
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from safetensors.torch import load_file, save_file

from services.fetcher import base_model
from services.fetcher.base_model import TINY_FOLDER, BaseModels
from services.fetcher.diffusers_folder import validate_diffusers_folder
from services.fetcher.meter import Meter
from shared.adapters.folder import FolderStore
from shared.diffusion.loading import Parts, load
from shared.diffusion.single_file import export, original_layout
from shared.errors import Passing, Refused, SettingsError
from shared.folders import download_folder, upload_folder
from shared.request import Train
from tests.servers.process import HOST, free_port
from tests.servers.web import Web

LOOPBACK = frozenset({HOST})


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return load(TINY_FOLDER)


class Stage:
    """Stages what a request asks for, and looks at what the trainer will see."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder / "store", public_url="http://x", key="k" * 32)
        self.home = folder / "home"
        self.folder = folder
        self.number = 0
        self.told: list[dict[str, Any]] = []
        self.models = self.of("tiny")

    def of(self, configured: str) -> BaseModels:
        return BaseModels(self.store, configured=configured, home=self.home, allowed=LOOPBACK)

    async def __call__(
        self, asked: str, *, subfolder: str | None = None, models: BaseModels | None = None
    ) -> str:
        self.number += 1
        scratch = self.folder / f"scratch-{self.number}"
        scratch.mkdir()
        train = Train(data_url="u", resume_ckpt_url=asked, hf_repo_subfolder=subfolder)
        meter = Meter("downloading", lambda **numbers: self.told.append(numbers), lambda: None)
        return await (models or self.models).stage(train, scratch, meter)

    async def loaded(self, prefix: str) -> Parts:
        """The model as the trainer loads it from the store."""
        folder = self.folder / f"loaded-{self.number}"
        await download_folder(self.store, prefix, folder)
        return load(folder)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def same(one: Parts, other: Parts) -> bool:
    """Whether two models have the same weights, bit by bit."""
    first, second = original_layout(one), original_layout(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("alias", ["sd_v1-5_vae.ckpt", "sd_v1-5_vae"])
async def test_the_default_name_means_the_configured_model_and_is_stored_once(
    stage: Stage, tiny: Parts, alias: str
) -> None:
    prefix = await stage(alias)

    assert prefix.startswith("cache/")
    assert same(await stage.loaded(prefix), tiny)
    before = [entry async for entry in stage.store.list("")]
    assert await stage(alias) == prefix
    assert [entry async for entry in stage.store.list("")] == before


async def test_a_configured_folder_is_staged_without_what_does_not_belong_to_the_model(
    stage: Stage, tiny: Parts, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"pickle")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")

    prefix = await stage("sd_v1-5_vae.ckpt", models=stage.of(str(folder)))

    assert prefix == await stage("sd_v1-5_vae.ckpt")
    assert same(await stage.loaded(prefix), tiny)


async def test_a_configured_folder_that_changes_is_stored_anew(
    stage: Stage, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    models = stage.of(str(folder))
    first = await stage("sd_v1-5_vae.ckpt", models=models)
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(config.read_text() + "\n")

    assert await stage("sd_v1-5_vae.ckpt", models=models) != first


async def test_a_configured_model_that_is_nowhere_is_a_matter_of_settings(stage: Stage) -> None:
    with pytest.raises(SettingsError, match="EVERYDREAM_BASE_MODEL is '/no/such/folder'"):
        await stage("sd_v1-5_vae.ckpt", models=stage.of("/no/such/folder"))


async def test_what_is_no_model_at_all_is_refused_with_what_would_be(stage: Stage) -> None:
    for asked in ("nonsense", "../../etc", "/etc/passwd", "a/b/c", "jobs/1/training/1/model"):
        with pytest.raises(Refused, match=r"resume_ckpt_url is .*; expected sd_v1-5_vae\.ckpt"):
            await stage(asked)


async def test_a_zipped_folder_is_taken_from_wherever_it_lies(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/model.zip", zipped(TINY_FOLDER, tmp_path / "m.zip", "my models/v1/"))

    prefix = await stage(url)

    assert prefix == await stage("sd_v1-5_vae.ckpt")
    assert same(await stage.loaded(prefix), tiny)
    assert stage.told[-1]["bytes"] == (tmp_path / "m.zip").stat().st_size


async def test_a_subfolder_of_the_zip_can_be_asked_for(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/model.zip", zipped(TINY_FOLDER, tmp_path / "m.zip", "a/v1/"))

    assert await stage(url, subfolder="v1") == await stage("sd_v1-5_vae.ckpt")
    with pytest.raises(Refused, match=r"no model_index\.json in a folder v2"):
        await stage(url, subfolder="v2")


async def test_a_zipped_folder_with_pickled_weights_is_refused_with_advice(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    url = web.serve("/model.zip", zipped(folder, tmp_path / "m.zip"))

    with pytest.raises(Refused, match=r"unet has only pickled weights .* safe serialization"):
        await stage(url)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("unet/config.json", None, "unet/config.json is missing"),
        ("vae/diffusion_pytorch_model.safetensors", None, "vae has no weights"),
        ("scheduler/scheduler_config.json", b"[]", "not a JSON object"),
        ("text_encoder/model.safetensors", b"\x08", "not a whole safetensors file"),
        ("model_index.json", b'{"_class_name": "FluxPipeline"}', "it is a FluxPipeline; expected"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_the_name_of_it(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)

    with pytest.raises(Refused, match=reason) as refused:
        validate_diffusers_folder(folder, "the model")
    assert str(refused.value).startswith("the model: ")


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / "tokenizer/tokenizer.json").unlink()
    assert validate_diffusers_folder(folder, "the model")
    (folder / "tokenizer/vocab.json").unlink()

    with pytest.raises(Refused, match=r"lacks vocab\.json and merges\.txt"):
        validate_diffusers_folder(folder, "the model")


def test_weights_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(Refused, match=r"vae/diffusion_pytorch_model.* is cut off"):
        validate_diffusers_folder(folder, "the model")


def tensors_of(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in original_layout(parts).items()}


async def test_a_single_file_gets_the_base_models_configurations(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path
) -> None:
    changed = {name: tensor + 1 for name, tensor in tensors_of(tiny).items()}
    save_file(changed, tmp_path / "m.safetensors")
    url = web.serve("/m.safetensors", tmp_path / "m.safetensors")

    prefix = await stage(url)

    found = original_layout(await stage.loaded(prefix))
    assert found.keys() == changed.keys()
    assert all(torch.equal(found[name], changed[name]) for name in changed)
    names = {entry.key.removeprefix(f"{prefix}/") async for entry in stage.store.list(prefix)}
    assert "single_file.safetensors" in names
    assert not any(name.startswith("unet/diffusion") for name in names)


async def test_a_file_that_we_exported_ourselves_comes_back(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path
) -> None:
    export(tiny, tmp_path / "last.safetensors", dtype=torch.float32)

    assert same(
        await stage.loaded(await stage(web.serve("/m", tmp_path / "last.safetensors"))), tiny
    )


def flat(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()
    }


def with_extras(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return tensors | {
        positions: torch.arange(77)[None],
        "model_ema.decay": torch.tensor(0.9),
        "betas": torch.ones(1000),
    }


@pytest.mark.parametrize("change", [flat, with_extras])
async def test_small_differences_between_tools_are_evened_out(
    stage: Stage,
    tiny: Parts,
    web: Web,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    save_file(change(tensors_of(tiny)), tmp_path / "m.safetensors")

    prefix = await stage(web.serve("/m", tmp_path / "m.safetensors"))

    assert same(await stage.loaded(prefix), tiny)


class Callback:
    """As training frameworks leave behind."""


@pytest.mark.parametrize("nested", [True, False])
async def test_a_ckpt_is_rewritten_byte_for_byte_without_unpickling_it(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path, *, nested: bool
) -> None:
    half = {name: tensor.half() for name, tensor in tensors_of(tiny).items()}
    torch.save(
        {"state_dict": half, "callback": Callback()} if nested else half, tmp_path / "m.ckpt"
    )

    prefix = await stage(web.serve("/m.ckpt", tmp_path / "m.ckpt"))

    await stage.store.download(f"{prefix}/single_file.safetensors", tmp_path / "s.safetensors")
    written = load_file(tmp_path / "s.safetensors")
    assert written.keys() == half.keys()
    assert all(torch.equal(written[name], half[name]) for name in half)
    assert (await stage.loaded(prefix)).prediction_type == "epsilon"


async def test_a_hostile_ckpt_does_nothing_and_is_refused(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": {"w": Hostile()}}, tmp_path / "m.ckpt")

    with pytest.raises(Refused, match=r"/m\.ckpt: the \.ckpt holds no dict of tensors; convert"):
        await stage(web.serve("/m.ckpt", tmp_path / "m.ckpt"))
    assert not (tmp_path / "touched").exists()


async def test_a_ckpt_of_the_old_format_is_refused_with_advice(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)

    with pytest.raises(Refused, match=r"torch's zip format \(torch 1\.6 or later\)"):
        await stage(web.serve("/m.ckpt", tmp_path / "m.ckpt"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {n: v for n, v in t.items() if "first_stage" not in n}, "it has no vae"),
        (
            lambda t: t | {"model.diffusion_model.extra": torch.ones(3)},
            "its unet has \\d+ tensors where",
        ),
        (
            lambda t: (
                t | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}
            ),
            "its unet has a tensor of shape 32x9x3x3",
        ),
        (lambda _: {"lora_unet_down.weight": torch.ones(3)}, "a LoRA, which is no whole model"),
        (lambda _: {"conditioner.embedders.0.w": torch.ones(3)}, "Stable Diffusion XL"),
        (lambda t: {n: v.to(torch.int32) for n, v in t.items()}, "expected floating point"),
    ],
)
async def test_another_architecture_is_refused_with_the_difference(
    stage: Stage, tiny: Parts, web: Web, *, change: Any, reason: str
) -> None:
    save_file(change(tensors_of(tiny)), stage.folder / "m.safetensors")

    with pytest.raises(Refused, match=reason) as refused:
        await stage(web.serve("/m.safetensors", stage.folder / "m.safetensors"))
    assert "/m.safetensors: " in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "an HTML page.*; a model must be a zipped diffusers folder"),
        (b"", "what came is empty"),
        (b"\x20\0\0\0\0\0\0\0{" + b"x" * 31, "not a whole safetensors file"),
    ],
)
async def test_anything_else_is_refused_by_what_it_is(
    stage: Stage, web: Web, content: bytes, reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        await stage(web.serve("/m", content))


async def test_a_zip_of_something_else_says_what_is_missing(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.png", b"1")

    with pytest.raises(Refused, match=r"no model_index\.json in the zip"):
        await stage(web.serve("/m.zip", tmp_path / "m.zip"))


async def test_a_model_that_is_ours_is_used_where_it_lies(stage: Stage, tmp_path: Path) -> None:
    await upload_folder(stage.store, copied(TINY_FOLDER, tmp_path / "m"), "jobs/1/training/1/model")

    assert await stage("store:jobs/1/training/1/model") == "jobs/1/training/1/model"
    await stage.store.upload(zipped(TINY_FOLDER, tmp_path / "m.zip"), "uploads/7")
    assert await stage("store:uploads/7") == await stage("sd_v1-5_vae.ckpt")
    with pytest.raises(Refused, match="not in the store any more"):
        await stage("store:uploads/8")


# --- The hub ----------------------------------------------------------------------------------

COMMIT = "5" * 40


class Hub:
    """As much of the hub's interface as its library needs, for one repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.tokens: set[str | None] = set()
        self.fetched: list[str] = []

    async def revision(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        if self.status != 200:
            return web.Response(status=self.status, headers=self._error())
        if request.match_info["repository"] != "org/model":
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in self._names()]
        return web.json_response({"id": "org/model", "sha": COMMIT, "siblings": siblings})

    def _error(self) -> dict[str, str]:
        return {"X-Error-Code": "GatedRepo"} if self.status == 403 else {}

    async def tree(self, _: web.Request) -> web.Response:
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


@pytest.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    hub = Hub(copied(TINY_FOLDER, tmp_path / "hub"))
    app = web.Application()
    app.router.add_get("/api/models/{repository:.+}/revision/{revision}", hub.revision)
    app.router.add_get("/api/models/{repository:.+}/tree/{revision}", hub.tree)
    app.router.add_get("/{repository:[^/]+/[^/]+}/resolve/{revision}/{path:.+}", hub.file)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{runner.addresses[0][1]}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    await runner.cleanup()


async def test_a_hub_id_is_fetched_without_what_the_model_does_not_need(
    stage: Stage, hub: Hub, tiny: Parts
) -> None:
    (hub.folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (hub.folder / "v1-5-pruned.ckpt").write_bytes(b"pickle")

    prefix = await stage("org/model")

    assert same(await stage.loaded(prefix), tiny)
    assert not any(name.endswith((".bin", ".ckpt")) for name in hub.fetched)
    assert stage.told[-1]["phase"] == "downloading"


@pytest.mark.parametrize(
    "page",
    [
        "https://huggingface.co/org/model",
        "https://huggingface.co/org/model/tree/main",
        "org/model@main",
    ],
)
async def test_the_page_of_a_model_names_it_too(stage: Stage, hub: Hub, page: str) -> None:
    assert await stage(page) == await stage("sd_v1-5_vae.ckpt")
    assert hub.fetched


async def test_a_subfolder_of_a_repository_can_hold_the_model(
    stage: Stage, hub: Hub, tmp_path: Path
) -> None:
    hub.folder = tmp_path / "outer"
    copied(TINY_FOLDER, hub.folder / "models/v1")

    assert await stage("org/model", subfolder="models/v1") == await stage("sd_v1-5_vae.ckpt")
    for bad in ("../v1", "/../..", "models/../.."):
        with pytest.raises(Refused, match="hf_repo_subfolder"):
            await stage("org/model", subfolder=bad)


async def test_half_precision_weights_are_taken_where_there_are_no_others(
    stage: Stage, hub: Hub
) -> None:
    for weights in list(hub.folder.rglob("*.safetensors")):
        weights.rename(weights.with_suffix(".fp16.safetensors"))

    assert (await stage.loaded(await stage("org/model"))).prediction_type == "epsilon"


async def test_a_repository_of_pickles_or_of_nothing_is_refused(stage: Stage, hub: Hub) -> None:
    (hub.folder / "unet/diffusion_pytorch_model.safetensors").unlink()

    with pytest.raises(Refused, match="org/model on the hub: unet has no weights"):
        await stage("org/model")
    with pytest.raises(Refused, match="org/other on the hub: no such model, or a private one"):
        await stage("org/other")


async def test_a_gated_model_is_refused_with_the_reason(stage: Stage, hub: Hub) -> None:
    hub.status = 403

    with pytest.raises(Refused, match="access must be asked for"):
        await stage("org/model")


async def test_a_hub_that_is_away_passes_unless_the_model_is_in_the_cache(
    stage: Stage, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = await stage("org/model")
    hub.status = 503
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{free_port()}")

    assert await stage("org/model") == prefix
    with pytest.raises(Passing, match="org/another on the hub"):
        await stage("org/another")


async def test_our_token_is_used_for_our_model_and_never_for_a_users(
    stage: Stage, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    await stage("org/model")
    assert hub.tokens == {None}
    await stage("sd_v1-5_vae.ckpt", models=stage.of("org/model"))
    assert hub.tokens == {None, "Bearer hf_secret"}


def test_the_model_that_moved_is_found_under_its_new_name() -> None:
    assert base_model.MOVED["runwayml/stable-diffusion-v1-5"].startswith("stable-diffusion-v1-5/")


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
