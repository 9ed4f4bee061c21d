"""Hub models: names, tokens, and the deployment's pinned base model."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from everydream.this_machine.base_models import pull_model
from services.fetcher.model_files import LORA_FILE, WEIGHTS
from services.fetcher.models.configured_model import PINS, TINY_FOLDER, hub_token
from services.fetcher.models.hub import INHERITED_VARIABLES, file_url, hub_model
from services.fetcher.models.hub_child import Listing, require_room_for
from services.fetcher.models.hub_order import HubModel, HubOrder
from shared import disk
from shared.diffusion.loading import Parts, load
from shared.errors import Full, Passing, Refused, SettingsError
from shared.request import LoraShape
from shared.settings import Settings, from_environment
from shared.storage import manifest as names
from tests.support.servers.hostile import Hostile, head, hostile
from tests.support.servers.process import HOST, free_port
from tests.support.staging import COMMIT, Hub, Stage, copied, running_hub, same

ALIAS = "sd_v1-5_vae.ckpt"
SHA = COMMIT.encode()
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
LORA = {
    f"{LAYER}.lora_A.weight": torch.ones(4, 64), f"{LAYER}.lora_B.weight": torch.ones(32, 4),
}  # fmt: skip
"""Of the tiny model."""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return load(TINY_FOLDER)


@pytest.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    async with running_hub(copied(TINY_FOLDER, tmp_path / "hub")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("org/name", HubModel(repository="org/name")),
        ("org/name@v1", HubModel(repository="org/name", revision="v1")),
        ("https://huggingface.co/org/name", HubModel(repository="org/name")),
        ("https://huggingface.co/org/name/", HubModel(repository="org/name")),
        ("huggingface.co/org/name", HubModel(repository="org/name")),
        ("https://hf.co/org/name/tree/v1", HubModel(repository="org/name", revision="v1")),
        (
            "https://huggingface.co/org/name/tree/main/models/v1",
            HubModel(repository="org/name", revision="main", subfolder="models/v1"),
        ),
        ("https://huggingface.co/org/name/resolve/main/m.safetensors", None),
        ("https://example.com/org/name", None),
        ("org", None),
        ("https://huggingface.co/org", None),
    ],
)
def test_a_model_is_named_by_its_id_or_by_the_url_of_its_page(
    text: str, model: HubModel | None
) -> None:
    assert hub_model(text) == model


def test_a_folder_that_is_asked_for_wins_over_the_pages() -> None:
    found = hub_model("https://huggingface.co/org/name/tree/main/a", "b")
    assert found == HubModel(repository="org/name", revision="main", subfolder="b")


def test_the_page_of_a_file_leads_to_its_bytes() -> None:
    page = "https://huggingface.co/org/name/blob/main/m.safetensors"
    assert file_url(page) == "https://huggingface.co/org/name/resolve/main/m.safetensors"
    for other in ("https://example.com/a/b/blob/m", "https://huggingface.co/o/n/resolve/main/blob"):
        assert file_url(other) == other


async def test_a_hub_id_is_fetched_without_what_the_model_does_not_need(
    stage: Stage, hub: Hub, tiny: Parts
) -> None:
    (hub.folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (hub.folder / "v1-5-pruned.ckpt").write_bytes(b"pickle")

    prefix = await stage("org/model")

    assert same(await stage.loaded(prefix), tiny)
    assert not any(name.endswith((".bin", ".ckpt")) for name in hub.fetched)
    assert stage.reported[-1]["phase"] == "downloading"


@pytest.mark.usefixtures("hub")
async def test_a_hub_models_weights_take_no_more_room_in_a_store_on_the_same_disk(
    stage: Stage,
) -> None:
    prefix = await stage("org/model")

    stored = stage.store.path_of(f"{prefix}/{WEIGHTS['unet']}.safetensors")
    blobs = (stage.home / "hub/models--org--model/blobs").iterdir()
    assert stored.stat().st_ino in {blob.stat().st_ino for blob in blobs}


async def test_a_hub_model_that_is_too_large_is_refused_before_anything_is_fetched(
    stage: Stage, hub: Hub
) -> None:
    hub.listed_bytes = {f"{WEIGHTS[part]}.safetensors": 9 << 30 for part in ("unet", "vae")}

    with pytest.raises(Refused, match=r"org/model on the hub: its files take 19.3 GB; at most 17"):
        await stage("org/model")
    assert hub.fetched == []


def test_a_hub_model_that_finds_no_room_is_not_fetched_and_what_is_cached_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: disk.SPARE + 10)
    model = HubModel(repository="org/model", subfolder="a")
    order = HubOrder(
        model=model, cache=str(tmp_path), weights=True, token=None, kept=(), environment={}
    )
    listing = Listing({"a/unet": 10, "a/vae": 1}, COMMIT)

    with pytest.raises(Full, match="no room on the disk to fetch it: "):
        require_room_for(order, listing, ["a/unet", "a/vae"])

    cached = tmp_path / "models--org--model/snapshots" / COMMIT / "a/vae"
    cached.parent.mkdir(parents=True)
    cached.touch()
    require_room_for(order, listing, ["a/unet", "a/vae"])


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


async def test_a_repository_of_a_lora_is_taken_by_the_usual_name_or_the_only_file(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = tmp_path / "loras"
    for name in (LORA_FILE, "checkpoint-1.safetensors", "v2/anna.safetensors", "v2/a/b.txt"):
        (loras / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(LORA, loras / name)
    async with running_hub(loras, "org/anna") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        prefix = await stage("org/anna")
        assert stage.lora == LoraShape(rank=4, alpha=4.0)
        await stage("org/anna", subfolder="v2")
        assert {*hub.fetched} == {LORA_FILE, "v2/anna.safetensors"}
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{free_port()}")

    again = await stage("org/anna")

    kept = [await stage.store.get(f"{each}/{names.LORA}") for each in (prefix, again)]
    assert kept[0] == kept[1]


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

    with pytest.raises(Refused, match="access must be asked for on its page; use a model"):
        await stage("org/model")


async def test_a_hub_that_is_away_passes_unless_the_model_is_in_the_cache(
    stage: Stage, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = await stage("org/model")
    hub.status = 503
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{free_port()}")

    assert await stage("org/model") == prefix
    with pytest.raises(Passing) as away:
        await stage("org/another")
    assert str(away.value) == (
        "org/another on the hub: the hub cannot be reached, and the model is not on this machine;"
        " check the fetcher's network, its proxy, and HF_ENDPOINT if it is set"
    )


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("listing", ["kept", "lost"])
async def test_a_hub_that_is_away_passes_where_the_cache_has_only_a_part_of_the_model(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, listing: str
) -> None:
    await without_weights(stage, listing)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{free_port()}")

    with pytest.raises(Passing, match="org/model on the hub"):
        await stage("org/model")


async def test_a_hub_that_lists_nothing_passes_where_the_cache_has_only_a_part_of_the_model(
    stage: Stage, hub: Hub
) -> None:
    await without_weights(stage, "lost")
    hub.tree_status = 403

    with pytest.raises(Passing, match=r"org/model on the hub: .* has not arrived"):
        await stage("org/model")


async def without_weights(stage: Stage, listing: str) -> None:
    """Fetch a model, and lose its weights; perhaps the hub library's list of its files, too."""
    await stage("org/model")
    cache = stage.home / "hub/models--org--model"
    for stem in WEIGHTS.values():
        (cache / f"snapshots/{COMMIT}/{stem}.safetensors").unlink()
    if listing == "lost":
        shutil.rmtree(cache / "trees")


async def test_our_token_is_used_for_our_model_and_never_for_a_users(
    stage: Stage, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    await stage("org/model")
    assert hub.tokens == {None}
    await stage("sd_v1-5_vae.ckpt", models=stage.of("org/model"))
    assert hub.tokens == {None, "Bearer hf_secret"}


async def test_our_token_may_come_from_a_file(
    stage: Stage, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub-token"
    file.write_text("hf_of_a_file\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(file))

    await stage("sd_v1-5_vae.ckpt", models=stage.of("org/model"))
    assert hub.tokens == {"Bearer hf_of_a_file"}

    file.write_text("")
    assert hub_token() is None
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(SettingsError, match="HF_TOKEN and HF_TOKEN_PATH are both set"):
        hub_token()


def test_no_token_is_told_to_a_download_that_may_not_use_it() -> None:
    told = ("HF_ENDPOINT", "HF_HUB_DOWNLOAD_TIMEOUT", "https_proxy", "SSL_CERT_FILE")
    untold = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
    assert all(INHERITED_VARIABLES.fullmatch(name) for name in told)
    assert not any(INHERITED_VARIABLES.fullmatch(name) for name in untold)


@pytest.mark.parametrize("prefix", ["", "https://huggingface.co/"])
def test_the_model_that_moved_is_found_under_its_new_name(prefix: str) -> None:
    found = hub_model(f"{prefix}runwayml/stable-diffusion-v1-5")
    assert found == HubModel(repository="stable-diffusion-v1-5/stable-diffusion-v1-5")


async def test_a_private_model_is_opened_to_users_only_where_the_deployment_says_so(
    stage: Stage, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.private = True

    for private in ({"org/model"}, {"other/thing", "org/*"}):
        assert await stage("org/model", models=stage.of("tiny", private)) == await stage(ALIAS)
    for private in (set[str](), {"org/other"}, {"orga/*"}):
        with pytest.raises(Refused, match="org/model on the hub: no such model, or a private one"):
            await stage("org/model", models=stage.of("tiny", private))


async def test_our_own_private_model_is_not_handed_to_users_from_the_cache(
    stage: Stage, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.private = True
    models = stage.of("org/model")
    await stage(ALIAS, models=models)

    with pytest.raises(Refused, match="no such model, or a private one"):
        await stage("org/model", models=models)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:{free_port()}")
    with pytest.raises(Passing, match="org/model on the hub"):
        await stage("org/model", models=models)


async def test_a_download_reports_its_total_size(stage: Stage, hub: Hub) -> None:
    await stage("org/model")

    last = stage.reported[-1]
    weights = sum(path.stat().st_size for path in hub.folder.rglob("*.safetensors"))
    assert last["bytes"] == last["bytes_total"] > weights


# --- everydream models pull -------------------------------------------------------------------


def settings(stage: Stage, base_model: str = "org/model") -> Settings:
    return from_environment(
        {"EVERYDREAM_HOME": str(stage.home), "EVERYDREAM_BASE_MODEL": base_model}
    )


async def test_a_pulled_model_is_used_without_asking_the_hub_again(stage: Stage, hub: Hub) -> None:
    console = Console(record=True, width=200)
    pin = await pull_model(settings(stage), None, None, console)
    hub.revisions.clear()
    hub.fetched.clear()

    assert await stage(ALIAS, models=stage.of("org/model")) == await stage(ALIAS)

    assert pin.commit == COMMIT
    assert not hub.revisions
    assert not hub.fetched
    said = console.export_text()
    assert f"org/model is commit {COMMIT} from now on" in said
    assert "pulling org/model" in said
    assert "EVERYDREAM_BASE_MODEL" not in said


async def test_a_pin_outlives_the_files_that_it_was_made_for(stage: Stage, hub: Hub) -> None:
    """After the disk is cleared the same commit is fetched, wherever the branch is now."""
    pin = await pull_model(settings(stage), None, None, Console())
    (stage.home / pin.folder).rename(stage.home / "gone")
    hub.revisions.clear()

    assert await stage(ALIAS, models=stage.of("org/model")) == await stage(ALIAS)
    assert hub.revisions == {COMMIT}


@pytest.mark.usefixtures("hub")
async def test_a_pinned_model_whose_weights_are_gone_is_fetched_again(stage: Stage) -> None:
    pin = await pull_model(settings(stage), None, None, Console())
    (stage.home / pin.folder / "unet/diffusion_pytorch_model.safetensors").unlink()

    assert await stage(ALIAS, models=stage.of("org/model")) == await stage(ALIAS)


async def test_another_model_and_revision_can_be_pulled_for_later(stage: Stage, hub: Hub) -> None:
    console = Console(record=True, width=200)

    await pull_model(settings(stage, "tiny"), "org/model", "v1", console)

    assert hub.revisions == {"v1"}
    assert "It is used with EVERYDREAM_BASE_MODEL=org/model" in console.export_text()


@pytest.mark.parametrize("name", ["tiny", "/srv/model"])
async def test_what_is_not_on_the_hub_cannot_be_pulled(stage: Stage, name: str) -> None:
    with pytest.raises(SettingsError, match="a hub id such as org/name"):
        await pull_model(settings(stage), name, None, Console())


async def test_a_model_that_cannot_be_trained_on_is_not_pinned(stage: Stage, hub: Hub) -> None:
    (hub.folder / "unet/diffusion_pytorch_model.safetensors").unlink()

    with pytest.raises(Refused, match="unet has no weights"):
        await pull_model(settings(stage), None, None, Console())
    assert not (stage.home / PINS).exists()


async def test_a_damaged_list_of_pins_is_named(stage: Stage) -> None:
    stage.home.mkdir()
    (stage.home / PINS).write_text("{")

    with pytest.raises(SettingsError, match=r"models\.json, which .* is damaged .*pull"):
        await stage(ALIAS, models=stage.of("org/model"))


async def endless_listing(server: Hostile, _request: str) -> None:
    await server.send(head(200, "Content-Length: 1099511627776", "Content-Type: application/json"))
    await server.for_ever(b" " * 65_536)


async def endless_error(server: Hostile, _request: str) -> None:
    await server.send(head(403, "Content-Length: 1099511627776", "X-Error-Code: GatedRepo"))
    await server.for_ever(b" " * 65_536)


async def endless_pages(server: Hostile, request: str) -> None:
    if "/revision/" in request:
        await server.whole(200, b'{"id": "org/model", "sha": "%s", "siblings": []}' % SHA)
        return
    following = f"{server.url}/api/models/org/model/tree/x?cursor={len(server.requests)}"
    await server.send(head(200, "Content-Length: 2", f'Link: <{following}>; rel="next"') + b"[]")


async def packed_listing(server: Hostile, _request: str) -> None:
    body = gzip.compress(bytes(64 << 20))
    await server.send(head(200, "Content-Encoding: gzip", f"Content-Length: {len(body)}") + body)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (endless_listing, "more than 16 MiB"),
        (endless_error, "more than 16 MiB"),
        (endless_pages, "more than 200 pages"),
        (packed_listing, "compresses its listing"),
    ],
)
async def test_a_listing_without_end_is_refused(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Hostile, str], Awaitable[None]],
    reason: str,
) -> None:
    async with hostile(answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(Refused, match=f"org/model on the hub: the hub .*{reason}"):
            await stage("org/model")
    assert server.sent < 64 << 20
