"""What a server says at its start, and what the doctor finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from everydream.this_machine.base_models import (
    ModelState,
    base_model_state,
    models_here,
    print_models,
)
from everydream.this_machine.doctor import (
    base_model_finding,
    card_findings,
    device_finding,
    examine,
    memory_finding,
)
from everydream.this_machine.greeting import greeting_lines, notes
from everydream.this_machine.only_server import only_server
from services.fetcher.models.configured_model import TINY_FOLDER, Pin, write_pin
from services.trainer.training.device_facts import device_facts
from shared.dataset.card_memory import GIB
from shared.settings import DeviceSetting, Settings, from_environment
from tests.support.servers.process import free_port
from tests.support.servers.web import Page, Web

CARD = {
    "torch": "2.13.0", "cuda": "13.0", "device": "cuda", "name": "NVIDIA H200",
    "memory_bytes": 150 * 10**9, "problem": None, "mend": None,
}  # fmt: skip
PROCESSOR = {"torch": "2.13.0", "cuda": None, "device": "cpu", "name": "cpu", "problem": None,
             "mend": None}  # fmt: skip
OLD_DRIVER = {**PROCESSOR, "cuda": "13.0", "device": "none", "name": "none",
              "problem": "the driver is too old; or so", "mend": "docs/gpu.md"}  # fmt: skip
BROKEN = {"error": "No module named 'torch'"}
TINY = ModelState(present=True, text="comes with the project")


def settings(home: Path, **more: str) -> Settings:
    named = {f"EVERYDREAM_{name}": value for name, value in more.items()}
    return from_environment({"EVERYDREAM_HOME": str(home)} | named)


def test_a_server_says_what_it_is_what_it_runs_on_and_how_to_reach_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    here = settings(tmp_path, BASE_MODEL="tiny", PORT="8081")
    said = "\n".join(greeting_lines(here, base_model_state(here), CARD))

    assert said.startswith("everydream ")
    assert "open        http://127.0.0.1:8081\n" in said
    assert "API         http://127.0.0.1:8081/docs" in said
    assert "device      NVIDIA H200, 150 GB (torch 2.13.0)" in said
    assert "base model  tiny: comes with the project" in said
    assert f"folder      {tmp_path}" in said
    assert f"key         in {tmp_path / 'client.toml'}" in said
    assert "note" not in said


@pytest.mark.parametrize(
    ("device", "more", "note"),
    [
        (CARD, {}, "the first job fetches the base model from the hub"),
        (PROCESSOR, {}, "no graphics card: training Stable Diffusion on a processor takes hours"),
        (OLD_DRIVER, {}, "the driver is too old; or so; docs/gpu.md"),
        (CARD, {"HOST": "::"}, "which other machines cannot open; set EVERYDREAM_PUBLIC_URL"),
        (
            CARD,
            {"BASE_MODEL": "/no/such"},
            "is neither a folder or file here",
        ),
    ],
)
def test_what_is_missing_at_the_start_is_a_note(
    tmp_path: Path, device: dict[str, Any], more: dict[str, str], note: str
) -> None:
    here = settings(tmp_path, **more)
    assert note in "\n".join(notes(here, base_model_state(here), device))


def test_a_home_that_others_can_look_into_is_a_note(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    open_home = settings(tmp_path, BASE_MODEL="tiny")
    assert f"{tmp_path}: chmod 700" in "\n".join(notes(open_home, TINY, CARD))
    tmp_path.chmod(0o700)
    assert list(notes(open_home, TINY, CARD)) == []


def test_a_base_model_is_found_as_a_folder_a_pin_or_in_the_hub_s_cache(tmp_path: Path) -> None:
    folder = base_model_state(settings(tmp_path, BASE_MODEL=str(TINY_FOLDER)))
    assert (folder.present, folder.text) == (True, "here, 5.3 MB")

    hub = settings(tmp_path, BASE_MODEL="org/name")
    assert not base_model_state(hub).present
    cached = in_the_cache(tmp_path, "org/name")
    assert base_model_state(hub).text == "here, 5.3 MB, not pinned"
    pin = Pin(commit="c0ffee" * 7, folder=str(cached.relative_to(tmp_path)))
    write_pin(tmp_path, "org/name", pin)
    assert base_model_state(hub).text == "here, 5.3 MB, commit c0ffeec0ffee"
    listed = {each["name"]: each for each in models_here(hub)}
    assert (listed["org/name"]["folder"], listed["org/name"]["is_base_model"]) == (
        str(cached), True
    )  # fmt: skip


def in_the_cache(home: Path, repository: str) -> Path:
    """A model as the hub's library keeps it."""
    kept = home / "hub" / f"models--{repository.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("c0ffee")
    return Path(shutil.copytree(TINY_FOLDER, kept / "snapshots/c0ffee"))


@pytest.mark.parametrize("pinned", ["pinned", ""])
def test_a_base_model_is_not_here_without_its_weights(tmp_path: Path, pinned: str) -> None:
    """Only its tokenizer was fetched, for a model that is a file; or someone has made room."""
    cached = in_the_cache(tmp_path, "org/name")
    (cached / "vae/diffusion_pytorch_model.safetensors").unlink()
    if pinned:
        pin = Pin(commit="c0ffee", folder=str(cached.relative_to(tmp_path)))
        write_pin(tmp_path, "org/name", pin)
    hub = settings(tmp_path, BASE_MODEL="org/name")

    state = base_model_state(hub)

    assert (state.present, state.text) == (False, "not on this machine")
    assert "models pull" in state.mend
    console = Console(record=True, width=200)
    print_models(console, models_here(hub))
    assert "The base model is not here" in console.export_text()


def test_a_base_model_that_was_renamed_on_the_hub_is_here(tmp_path: Path) -> None:
    cached = in_the_cache(tmp_path, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    hub = settings(tmp_path, BASE_MODEL="runwayml/stable-diffusion-v1-5")

    assert base_model_state(hub).text == "here, 5.3 MB, not pinned"
    (listed,) = [each for each in models_here(hub) if each["is_base_model"]]
    assert (listed["name"], listed["folder"]) == ("runwayml/stable-diffusion-v1-5", str(cached))


def test_what_was_fetched_with_a_token_is_here_for_who_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_cache(tmp_path, "org/name")
    (tmp_path / "hub").rename(tmp_path / "hub-private")
    hub = settings(tmp_path, BASE_MODEL="org/name")

    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert not base_model_state(hub).present
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert base_model_state(hub).present


@pytest.mark.parametrize(
    ("device", "base_model", "state", "words"),
    [
        (CARD, "org/name", "ok", "NVIDIA H200, 150 GB (torch 2.13.0), built for CUDA 13.0"),
        (PROCESSOR, "org/name", "note", "training takes hours to days"),
        (PROCESSOR, "tiny", "ok", "the processor"),
        (OLD_DRIVER, "tiny", "wrong", "the driver is too old; or so"),
        (BROKEN, "tiny", "wrong", "torch does not work: No module named 'torch'"),
    ],
)
def test_the_doctor_judges_the_device(
    device: dict[str, Any], base_model: str, state: str, words: str
) -> None:
    found = device_finding(device, base_model)
    assert (found.state, words in found.text) == (state, True), found
    assert bool(found.mend) is (state != "ok")
    assert found.mend in (device.get("mend"), "") or state != "wrong" or "error" in device


async def test_the_doctor_looks_at_the_inferencer_s_device_too_if_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DeviceSetting] = []

    async def facts(device: DeviceSetting) -> dict[str, Any]:
        asked.append(device)
        return OLD_DRIVER if device.value == "cuda:1" else PROCESSOR

    monkeypatch.setattr("everydream.this_machine.doctor.device_facts", facts)
    alike = settings(tmp_path, BASE_MODEL="tiny", DEVICE="cpu")
    other = settings(tmp_path, BASE_MODEL="tiny", DEVICE="cpu", INFERENCER_DEVICE="cuda:1")

    assert [each["part"] for each in (await examine(alike))["findings"]].count("inferencer") == 0
    found = {each["part"]: each for each in (await examine(other))["findings"]}

    assert asked[-1] == ("cuda:1", "EVERYDREAM_INFERENCER_DEVICE")
    assert found["device"]["state"] == "ok"
    assert (found["inferencer"]["state"], found["inferencer"]["mend"]) == ("wrong", "docs/gpu.md")


@pytest.mark.parametrize("named_by", ["client.toml", "EVERYDREAM_URL"])
async def test_the_doctor_asks_the_server_that_the_commands_ask_and_says_who_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    async def facts(_device: DeviceSetting) -> dict[str, Any]:
        return CARD

    monkeypatch.setattr("everydream.this_machine.doctor.device_facts", facts)
    monkeypatch.delenv("EVERYDREAM_URL", raising=False)
    if named_by == "client.toml":
        (tmp_path / named_by).write_text('url = "http://127.0.0.1:9"\nkey = "k"\n')
    else:
        monkeypatch.setenv(named_by, "http://127.0.0.1:9")
    here = settings(tmp_path, BASE_MODEL="tiny", PORT=str(free_port()))

    (server,) = [each for each in (await examine(here))["findings"] if each["part"] == "server"]

    assert server["state"] == ("note" if named_by == "client.toml" else "wrong")
    assert "none at http://127.0.0.1:9, where " in server["text"]
    assert f"{named_by} says that it is" in server["text"]


@pytest.mark.parametrize(
    ("url", "state", "text"),
    [
        ("{web}", "ok", "{web} is ready"),
        ("127.0.0.1:9", "wrong", "http://127.0.0.1:9: nothing answers there (connection refused)"),
        ("ftp://x", "wrong", "ftp://x: expected the gateway's address, as http://127.0.0.1:8080"),
    ],
)
async def test_the_doctor_asks_the_server_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: Web, url: str, state: str, text: str
) -> None:
    async def facts(_device: DeviceSetting) -> dict[str, Any]:
        return CARD

    monkeypatch.setattr("everydream.this_machine.doctor.device_facts", facts)
    web.serve("/ready", Page(b"{}", headers={"Content-Type": "application/json"}))
    at = web.url("")

    examined = await examine(settings(tmp_path, BASE_MODEL="tiny"), url.format(web=at))

    (server,) = [each for each in examined["findings"] if each["part"] == "server"]
    assert (server["state"], server["text"]) == (state, text.format(web=at))


async def test_the_doctor_says_which_base_model_the_server_of_this_home_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def facts(_device: DeviceSetting) -> dict[str, Any]:
        return PROCESSOR

    async def models_of(here: Settings) -> list[str]:
        found = (await examine(here))["findings"]
        return [each["text"] for each in found if each["part"] == "base model"]

    monkeypatch.setattr("everydream.this_machine.doctor.device_facts", facts)
    mine, others = settings(tmp_path, BASE_MODEL="tiny"), settings(tmp_path, BASE_MODEL="org/other")
    with only_server(others):
        _, served = await models_of(mine)
        assert served == f"the server at {others.public_url} uses org/other, not tiny"
        assert len(await models_of(others)) == 1
    assert len(await models_of(mine)) == 1


@pytest.mark.parametrize(
    ("gibibytes", "state", "words", "mend"),
    [
        (3.6, "wrong", "a usual training needs about 11.0 GiB", "use a larger card"),
        (7.6, "note", "a usual training needs about 11.0 GiB", "lora_rank 16 needs about 5.6 GiB"),
        (10.6, "note", "10.6 GiB, 5.0 GiB of them free", "gradient_checkpointing true needs about"),
        (11.8, "note", "14.4 GiB with live samples beside it", "drawn on the processor"),
        (23.7, "ok", "23.7 GiB", ""),
    ],
)
def test_the_doctor_judges_the_memory_of_a_card(
    tmp_path: Path, gibibytes: float, state: str, words: str, mend: str
) -> None:
    card = {**CARD, "memory_bytes": int(gibibytes * GIB), "free_bytes": 5 * GIB}
    (found,) = card_findings(card, settings(tmp_path, BASE_MODEL="org/name"))

    assert (found.state, words in found.text, mend in found.mend) == (state, True, True), found


def test_the_doctor_asks_for_no_room_for_samples_on_a_card_that_only_trains(tmp_path: Path) -> None:
    card = {**CARD, "memory_bytes": 12 * GIB, "free_bytes": 12 * GIB}
    two = settings(tmp_path, BASE_MODEL="org/name", INFERENCER_DEVICE="cuda:1")

    assert [each.state for each in card_findings(card, two)] == ["ok"]
    assert [*card_findings(card, settings(tmp_path, BASE_MODEL="tiny"))] == []
    assert [*card_findings(PROCESSOR, two)] == []


def test_the_doctor_judges_memory_and_base_model(tmp_path: Path) -> None:
    assert memory_finding(10**9, 0).state == "ok"
    assert memory_finding(10**9, 2 * 10**9).state == "wrong"
    (tmp_path / "models.json").write_text("{")
    damaged = base_model_finding(settings(tmp_path, BASE_MODEL="org/name"))
    assert damaged.state == "wrong"
    assert f"{tmp_path / 'models.json'}, which names the models that were pulled, is damaged" in (
        damaged.text
    )
    assert damaged.mend == "remove it and pull them again: `everydream models pull`"


def test_a_child_tells_what_torch_sees() -> None:
    facts = device_facts()
    assert facts["device"] in ("cpu", "cuda")
    assert facts["torch"].startswith("2.")
    assert facts["problem"] is None
