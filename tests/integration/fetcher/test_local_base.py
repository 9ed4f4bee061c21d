"""A file or folder on the local disk as the deployment's base model, and the check at the start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.fetcher.models.base_setting import check_base_model
from services.fetcher.models.configured_model import TINY_FOLDER
from services.fetcher.models.local_file import LocalFile
from services.fetcher.progress_meter import ProgressMeter
from shared.diffusion.loading import Parts, load
from shared.diffusion.saving import save_folder
from shared.diffusion.single_file import export
from shared.errors import Passing, Refused, SettingsError
from shared.settings import from_environment
from tests.support.in_process_parser import InProcessReader
from tests.support.models import random_parts, small_tokenizer, standard_parts
from tests.support.servers.process import HOST, free_port
from tests.support.servers.web import Web
from tests.support.staging import Hub, Stage, copied, running_hub, same, tensors_of

ALIAS = "sd_v1-5_vae.ckpt"
HUB_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return load(TINY_FOLDER)


@pytest.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """Has a model whose tokenizer has other words than ``tiny``."""
    folder = tmp_path / "hub"
    save_folder(random_parts(), folder)
    async with running_hub(folder, HUB_MODEL) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def kept(stage: Stage) -> list[Path]:
    return sorted((stage.home / "base-model").glob("*"))


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
async def test_a_file_is_the_base_model_of_jobs_that_name_none(
    stage: Stage, tiny: Parts, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"v1-5.{suffix}"
    export(tiny, file, dtype=torch.float32)

    found = await stage.loaded(await stage(ALIAS, models=stage.of(str(file))))

    assert same(found, tiny)
    assert found.vae.config.scaling_factor == tiny.vae.config.scaling_factor
    assert stage.warnings == ()


async def test_a_file_is_converted_once_and_anew_if_it_changes(
    stage: Stage, tiny: Parts, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    save_file(tensors_of(tiny) | {"first_stage_model.hook": torch.ones(1)}, file)
    first = await stage(ALIAS, models=stage.of(str(file)))
    (folder,) = kept(stage)
    before = (folder / "model/single_file.safetensors").stat()

    # Another process, that is; and it has the first one's warning.
    assert await stage(ALIAS, models=stage.of(str(file))) == first
    assert (folder / "model/single_file.safetensors").stat().st_ino == before.st_ino
    assert "m.safetensors): ignored, as Stable Diffusion has no such tensors" in stage.warnings[0]

    save_file({name: tensor + 1 for name, tensor in tensors_of(tiny).items()}, file)
    assert await stage(ALIAS, models=stage.of(str(file))) != first
    assert folder not in kept(stage)
    assert len(kept(stage)) == 1
    assert [*(stage.home / "scratch").iterdir()] == []


async def test_a_conversion_that_was_cut_off_is_made_anew(
    stage: Stage, tiny: Parts, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    save_file(tensors_of(tiny), file)
    first = await stage(ALIAS, models=stage.of(str(file)))
    (kept(stage)[0] / "model/single_file.safetensors").unlink()

    assert await stage(ALIAS, models=stage.of(str(file))) == first


async def test_of_two_fetchers_with_one_home_the_second_uses_what_the_first_has_converted(
    stage: Stage, tiny: Parts, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    save_file(tensors_of(tiny), file)
    both, found = asyncio.Barrier(2), {}

    async def fetcher(name: str) -> None:
        meter = ProgressMeter("", lambda **_: None, lambda: None)
        found[name] = await LocalFile(file, stage.home, find).folder(meter, ReadsWithOthers(both))
        (weights,) = kept(stage)[0].glob("model/*.safetensors")
        inodes.add(weights.stat().st_ino)

    async def find(_words: int) -> Path:
        return TINY_FOLDER

    inodes: set[int] = set()
    await asyncio.gather(fetcher("one"), fetcher("other"))

    assert found["one"] == found["other"]
    assert len(kept(stage)) == len(inodes) == 1, "what the first one uses stays"
    assert [*(stage.home / "scratch").iterdir()] == []


class ReadsWithOthers(InProcessReader):
    """Has read a file when the others have, too."""

    def __init__(self, others: asyncio.Barrier) -> None:
        super().__init__()
        self._others = others

    async def parse(self, *task: Any, **more: Any) -> Any:
        parsed = await super().parse(*task, **more)
        if not parsed.needs_base:
            await self._others.wait()
        return parsed


async def test_a_file_that_changes_while_it_is_converted_is_tried_again(
    stage: Stage, tiny: Parts, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    save_file(tensors_of(tiny), file)

    class Changes(InProcessReader):
        async def parse(self, *task: Any, **more: Any) -> Any:
            parsed = await super().parse(*task, **more)
            os.utime(file, (1.0, 1.0))
            return parsed

    async def find(_words: int) -> Path:
        return TINY_FOLDER

    meter = ProgressMeter("", lambda **_: None, lambda: None)
    with pytest.raises(Passing, match=r"m\.safetensors\): it has changed while it was read"):
        await LocalFile(file, stage.home, find).folder(meter, Changes())
    assert kept(stage) == []


async def test_a_users_single_file_gets_tokenizer_and_vae_of_a_base_model_that_is_a_file(
    stage: Stage, web: Web, tiny: Parts, tmp_path: Path
) -> None:
    base, without = tmp_path / "base.safetensors", tmp_path / "m.safetensors"
    tensors = tensors_of(tiny)
    save_file(tensors, base)
    save_file({name: t for name, t in tensors.items() if "first_stage" not in name}, without)

    prefix = await stage(web.serve("/m", without), models=stage.of(str(base)))

    assert same(await stage.loaded(prefix), tiny)
    assert "has no VAE, and gets the configured base model's" in stage.warnings[0]


async def test_a_file_of_other_words_gets_the_tokenizer_beside_it(
    stage: Stage, hub: Hub, tmp_path: Path
) -> None:
    parts = standard_parts(small_tokenizer())
    save_file(tensors_of(parts), tmp_path / "m.safetensors")
    copied(hub.folder / "tokenizer", tmp_path / "tokenizer")

    found = await stage.loaded(await stage(ALIAS, models=stage.of(str(tmp_path / "m.safetensors"))))

    assert same(found, parts)
    assert hub.fetched == []


async def test_or_that_of_stable_diffusion_on_the_hub_without_its_weights(
    stage: Stage, hub: Hub, tmp_path: Path
) -> None:
    parts = random_parts()
    save_file(tensors_of(parts), tmp_path / "m.safetensors")

    found = await stage.loaded(await stage(ALIAS, models=stage.of(str(tmp_path / "m.safetensors"))))

    assert same(found, parts)
    assert "tokenizer/vocab.json" in hub.fetched
    assert not any(name.endswith(".safetensors") for name in hub.fetched)


async def test_without_a_hub_it_is_told_where_a_tokenizer_may_lie(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{free_port()}")
    save_file(tensors_of(random_parts()), tmp_path / "m.safetensors")

    with pytest.raises(Passing, match=r"m\.safetensors\): its tokenizer is neither beside it, in"):
        await stage(ALIAS, models=stage.of(str(tmp_path / "m.safetensors")))


async def test_a_file_that_is_no_model_ends_a_job_with_the_settings_name(
    stage: Stage, tmp_path: Path
) -> None:
    save_file({"lora_unet_down.weight": torch.ones(3)}, tmp_path / "m.safetensors")

    with pytest.raises(Refused, match=r"EVERYDREAM_BASE_MODEL \(.*m\.safetensors\): .* a LoRA"):
        await stage(ALIAS, models=stage.of(str(tmp_path / "m.safetensors")))


# --- The check at the start -------------------------------------------------------------------


def check(configured: object) -> None:
    check_base_model(from_environment({"EVERYDREAM_BASE_MODEL": str(configured)}))


def test_what_can_be_a_model_passes_at_the_start(tmp_path: Path, tiny: Parts) -> None:
    for suffix in ("safetensors", "ckpt"):
        export(tiny, tmp_path / f"m.{suffix}")
        check(tmp_path / f"m.{suffix}")
    for name in ("tiny", "org/name", "org/name@v1", "https://huggingface.co/org/name", TINY_FOLDER):
        check(name)
    check("runwayml/stable-diffusion-v1-5")


def without(name: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        (copied(TINY_FOLDER, at) / name).unlink()
        return at

    return make


def holding(content: bytes, name: str = "m.safetensors") -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        at.mkdir()
        (at / name).write_bytes(content)
        return at / name

    return make


def pointer(at: Path) -> Path:
    content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (copied(TINY_FOLDER, at) / "unet/diffusion_pytorch_model.safetensors").write_bytes(content)
    return at


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda at: at / "gone", "is neither a folder or file here nor the id of a hub model"),
        (lambda at: at / "gone.safetensors", "is no file here"),
        (lambda _: "models/gone.ckpt", "is no file here"),
        (lambda _: "word", "is neither a folder"),
        (lambda _: "~nobody-of-that-name/model", "is neither a folder"),
        (lambda _: "a/b/c", "is neither a folder"),
        (lambda _: "https://example.com/m.safetensors", "is neither a folder"),
        (lambda _: "https://huggingface.co/a/b/tree/main/..", "is neither a folder"),
        (without("model_index.json"), "is a folder that lacks model_index.json"),
        (without("vae/config.json"), "is a folder that lacks vae/config.json"),
        (
            without("text_encoder/model.safetensors"),
            "is a folder that lacks text_encoder/model.safetensors",
        ),
        (pointer, "has unet/diffusion_pytorch_model.safetensors as a Git LFS pointer"),
        (holding(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (holding(b"<html>"), "is a file, but neither safetensors nor a .ckpt in torch's zip"),
        (holding(b""), "is a file, but neither"),
        (holding(b"\x80\x02}q", "old.ckpt"), "is a file, but neither"),
    ],
)
def test_what_cannot_be_one_is_named_with_the_reason_and_what_is_expected(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    configured = make(tmp_path / "m")

    with pytest.raises(SettingsError) as stopped:
        check(configured)

    said = str(stopped.value)
    assert said.startswith(f"EVERYDREAM_BASE_MODEL is {str(configured)!r}, which {reason}")
    assert said.endswith(
        "expected the path of a diffusers folder, or of a .safetensors or .ckpt file, a hub id such"
        " as org/name, or tiny"
    )
    assert "\n" not in said
