"""Hostile models: nothing of them is run, built or written beyond bounds, and each is told why."""

from __future__ import annotations

import json
import pickle
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from services.fetcher.models.configured_model import TINY_FOLDER
from services.fetcher.parsing.models.pickle_machine import Inert, run
from shared.errors import Refused
from shared.request import STORED
from shared.storage.folders import read_manifest
from tests.security.bounds import within_bounds, written
from tests.support.corpora.checkpoints import (
    EXPLOITS,
    FOLDERS,
    INERT,
    REFUSED_CHECKPOINTS,
    REFUSED_SAFETENSORS,
    SENSELESS,
    Hostile,
    Raw,
    checkpoint,
    zip_with_traversal,
)
from tests.support.staging import Stage, copied, zipped

KEY = "uploads/model"
SHOWN = STORED + KEY
REASON = 1000
"""Characters that are enough for any reason."""
CANARY = "everydream-canary"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def staged(stage: Stage, data: bytes) -> str:
    """What a file in the store that a job names as its model becomes."""
    await stage.store.put(KEY, data)
    with within_bounds():
        return await stage(SHOWN)


async def refusal(stage: Stage, data: bytes) -> str:
    """Why it is not taken; nothing but the download and a start of the model may be left of it."""
    with pytest.raises(Refused) as refused:
        await staged(stage, data)
    text = str(refused.value)
    assert text.startswith(SHOWN)
    assert len(text) < REASON
    assert text.isprintable()
    assert sum(written(stage.folder / "scratch-1").values()) < len(data) + (4 << 20)
    return text


@pytest.mark.parametrize("name", list(EXPLOITS))
def test_no_pickle_runs_anything(name: str, tmp_path: Path) -> None:
    hostile = EXPLOITS[name](tmp_path / CANARY)

    with suppress(Refused):
        run(hostile)
    assert not (tmp_path / CANARY).exists()

    try:
        pickle.loads(hostile)  # noqa: S301 - to show that it would have worked
    except TypeError:
        assert name == "as the key of a dict"
    assert (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", list(EXPLOITS))
async def test_an_exploit_as_a_model_is_refused_with_advice(
    stage: Stage, name: str, tmp_path: Path
) -> None:
    hostile = EXPLOITS[name](tmp_path / CANARY)

    text = await refusal(stage, checkpoint(Raw(hostile.removesuffix(b"."))))

    assert "convert it to .safetensors" in text
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", list(INERT))
def test_what_builds_anything_else_than_tensors_builds_nothing(name: str) -> None:
    assert isinstance(run(INERT[name]), Inert)


@pytest.mark.parametrize("name", list(SENSELESS))
def test_an_index_that_makes_no_sense_is_refused(name: str) -> None:
    with within_bounds(), pytest.raises(Refused, match="index cannot be read") as refused:
        run(SENSELESS[name])
    assert len(str(refused.value)) < REASON


@pytest.mark.parametrize("name", list(REFUSED_CHECKPOINTS))
async def test_a_checkpoint_that_lies_is_refused_with_the_reason(stage: Stage, name: str) -> None:
    hostile: Hostile = REFUSED_CHECKPOINTS[name]

    assert hostile.reason in await refusal(stage, hostile.make())


@pytest.mark.parametrize("name", list(REFUSED_SAFETENSORS))
async def test_safetensors_that_lie_are_refused_with_the_reason(stage: Stage, name: str) -> None:
    hostile: Hostile = REFUSED_SAFETENSORS[name]

    assert hostile.reason in await refusal(stage, hostile.make())


@pytest.mark.parametrize("name", list(FOLDERS))
async def test_a_configuration_that_asks_for_far_too_much_is_refused(
    stage: Stage, name: str, tmp_path: Path
) -> None:
    part, said, reason = FOLDERS[name]
    folder = copied(TINY_FOLDER, tmp_path / "model")
    config = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if isinstance(said, bytes):
        config.write_bytes(said)
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), **said}))

    text = await refusal_of_folder(stage, folder)

    assert reason in text
    assert len(text) < REASON


async def refusal_of_folder(stage: Stage, folder: Path) -> str:
    data = zipped(folder, folder.with_suffix(".zip")).read_bytes()
    with pytest.raises(Refused) as refused:
        await staged(stage, data)
    return str(refused.value)


async def test_a_configuration_that_names_classes_and_code_loads_none(
    stage: Stage, tmp_path: Path
) -> None:
    """What of it reaches the trainer is text; the classes are ours, and no code comes along."""
    folder = copied(TINY_FOLDER, tmp_path / "model")
    evil = {"auto_map": {"AutoModel": "modeling_evil.Evil"}, "custom_pipeline": "evil/evil"}
    for part in ("unet", "vae", "text_encoder"):
        config = folder / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | evil))
        (folder / part / "modeling_evil.py").write_text(f"open({str(tmp_path / CANARY)!r}, 'w')")

    prefix = await staged(stage, zipped(folder, tmp_path / "m.zip").read_bytes())
    await stage.loaded(prefix)

    assert not (tmp_path / CANARY).exists()
    names = [file.name for file in (await read_manifest(stage.store, prefix)).files]
    assert not any(name.endswith(".py") for name in names)


async def test_names_that_lead_out_of_a_zipped_folder_are_left_alone(stage: Stage) -> None:
    prefix = await staged(stage, zip_with_traversal(TINY_FOLDER, CANARY))

    assert prefix == await stage("sd_v1-5_vae.ckpt")
    assert not list(stage.folder.rglob(f"*{CANARY}*"))


async def test_a_link_in_a_zipped_folder_is_refused_by_name(stage: Stage, tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / "vae/config.json").unlink()
    data = zipped(folder, tmp_path / "m.zip")
    link = zipfile.ZipInfo("vae/config.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(data, "a") as file:
        file.writestr(link, "/etc/passwd")

    with pytest.raises(Refused, match=r"vae/config\.json: a link, not a file"):
        await staged(stage, data.read_bytes())
