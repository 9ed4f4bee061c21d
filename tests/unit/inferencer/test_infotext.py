"""The settings in a PNG, parsed by stable-diffusion-webui's rules."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from services.inferencer.generation.infotext import VERSION, WeighedLora, parameters, save
from services.inferencer.order import ImageRequest, Provenance
from shared.request import Inference, Scheduler

PROVENANCE = Provenance(
    job="job-1", step=500, model="last-wall-ep20-gs00500", sha256="0123456789abcdef" * 4
)
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def image_request(
    prompt: str = "a red wall", negative: str | None = None, *, side: int | None = None, **more: Any
) -> ImageRequest:
    request = Inference(prompt=prompt, negative_prompt=negative, **more)
    return ImageRequest(inference=request, seed=40, side=side)


def text_of(
    request: ImageRequest,
    *,
    seed: int = 42,
    clip_skip: int = 0,
    provenance: Provenance = PROVENANCE,
) -> str:
    return parameters(request, seed=seed, clip_skip=clip_skip, provenance=provenance)


def read(text: str) -> dict[str, str]:
    """Parse as the webui does: settings in the last line, above it prompt and negative prompt."""
    *lines, last = text.strip().split("\n")
    pairs = PARAMETER.findall(last)
    assert len(pairs) >= 3
    told = {"Prompt": "", "Negative prompt": ""}
    part = "Prompt"
    for each in lines:
        line = each.strip()
        if line.startswith("Negative prompt:"):
            part, line = "Negative prompt", line[16:].strip()
        told[part] += ("\n" if told[part] else "") + line
    unquoted = {name: json.loads(value) if value[0] == '"' else value for name, value in pairs}
    return told | unquoted


def written(
    path: Path, request: ImageRequest, *, seed: int = 42, clip_skip: int = 0
) -> dict[str, str]:
    """The chunks of a PNG, as Pillow reads them."""
    image = Image.new("RGB", (8, 8))
    save(image, path, request, seed=seed, clip_skip=clip_skip, provenance=PROVENANCE)
    with Image.open(path) as again:
        return {name: str(again.info[name]) for name in ("parameters", "everydream")}


def test_the_text_is_the_prompts_and_a_line_of_settings() -> None:
    assert text_of(image_request(negative="blue, dull"), clip_skip=2) == (
        "a red wall\n"
        "Negative prompt: blue, dull\n"
        "Steps: 50, Sampler: LMS, CFG scale: 7.5, Seed: 42, Size: 512x512, Model hash: 0123456789,"
        " Model: last-wall-ep20-gs00500, Clip skip: 2, RNG: CPU,"
        f" Version: everydream {VERSION}"
    )


@pytest.mark.parametrize("negative", [None, ""])
def test_without_a_negative_prompt_there_is_no_line_for_it(negative: str | None) -> None:
    assert "Negative" not in text_of(image_request(negative=negative))
    assert text_of(image_request("", negative)).startswith("Steps: 50, ")


@pytest.mark.parametrize(("clip_skip", "told"), [(0, "1"), (1, "1"), (4, "4")])
def test_no_clip_skip_is_written_as_the_first_layer_from_the_end(clip_skip: int, told: str) -> None:
    assert read(text_of(image_request(), clip_skip=clip_skip))["Clip skip"] == told


def test_an_unknown_model_is_left_out() -> None:
    told = read(text_of(image_request(), provenance=Provenance(job="job-1")))

    assert told.keys().isdisjoint({"Model", "Model hash"})
    assert told["Seed"] == "42"


def test_loras_stand_in_the_prompt_and_their_hashes_in_the_line(tmp_path: Path) -> None:
    loras = [WeighedLora("anna", 0.8, "0123456789ab"), WeighedLora("old style", -1.0, "")]
    request = image_request(negative="dull")
    told: dict[str, Any] = {"seed": 1, "clip_skip": 0}

    text = parameters(request, provenance=PROVENANCE, loras=loras, **told)
    save(Image.new("RGB", (8, 8)), tmp_path / "a.png", request, provenance=PROVENANCE, loras=loras,
         **told)  # fmt: skip

    assert text.startswith(
        "a red wall <lora:anna:0.8> <lora:old style:-1>\nNegative prompt: dull\n"
    )
    assert read(text)["Lora hashes"] == "anna: 0123456789ab"
    assert read(text).keys().isdisjoint({"Model", "Model hash"})
    with Image.open(tmp_path / "a.png") as image:
        everything = json.loads(image.info["everydream"])
    assert everything["loras"][0] == {"name": "anna", "weight": 0.8, "hash": "0123456789ab"}
    assert everything["prompt"] == "a red wall"


def test_a_sample_states_its_own_size() -> None:
    assert read(text_of(image_request(side=1152)))["Size"] == "1152x1152"


def test_samplers_have_the_names_that_the_webui_knows_them_by() -> None:
    told = {
        name: read(text_of(image_request(scheduler=name)))["Sampler"]
        for name in get_args(Scheduler)
    }

    assert told == {
        "DDIM": "DDIM",
        "DDPM": "DDPM",
        "DPM-M": "DPM++ 2M",
        "DPM-S": "DPM-S",
        "EULER-A": "Euler a",
        "EULER-D": "Euler",
        "HEUN": "Heun",
        "IPNDM": "IPNDM",
        "K-LMS": "LMS",
        "KDPM2-A": "DPM2 a",
        "KDPM2-D": "DPM2",
        "PNDM": "PLMS",
    }


@pytest.mark.parametrize("name", ["a, b", "a: b", "a\nb", '"a"', 'a, "b" \\ c', "plain"])
def test_a_models_name_comes_back_whatever_it_has_in_it(name: str) -> None:
    told = read(text_of(image_request(), provenance=Provenance(job="job-1", model=name)))

    assert (told["Model"], told["Clip skip"]) == (name, "1")


PROMPTS = st.lists(
    st.one_of(st.text(), st.sampled_from(["\n", "Steps: 3", "Negative prompt: ", "a, b: c"])),
    max_size=5,
).map("".join)


def stripped(text: str) -> str:
    """As the webui keeps it: without spaces around lines and without leading empty lines."""
    return "\n".join(line.strip() for line in text.split("\n")).lstrip("\n")


@given(PROMPTS, PROMPTS)
@example("a\nSteps: 3, Sampler: DDIM, CFG scale: 1", "b\nSteps: 4, Seed: 1, Size: 1x1")
@example("\N{GRINNING FACE} é\n壁", "\0\r\n\x85\u2028")
def test_every_prompt_leaves_the_settings_readable(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, negative: str
) -> None:
    request = image_request(prompt, negative, width=128, height=256, scheduler="EULER-A")

    chunks = written(tmp_path_factory.getbasetemp() / "image.png", request)

    told = read(chunks["parameters"])
    assert told["Size"] == "128x256"
    assert (told["Sampler"], told["Seed"]) == ("Euler a", "42")
    if not re.search(r"^\s*Negative prompt:", f"{prompt}\n{negative}", re.MULTILINE):
        assert told["Prompt"].rstrip() == stripped(prompt.replace("\0", "\ufffd")).rstrip()
        assert told["Negative prompt"] == stripped(negative.replace("\0", "\ufffd"))
    everything = json.loads(chunks["everydream"])
    assert (everything["prompt"], everything["negative_prompt"]) == (prompt, negative)


def test_half_a_surrogate_pair_spoils_no_image(tmp_path: Path) -> None:
    chunks = written(tmp_path / "image.png", image_request("a \ud800 wall"))

    assert chunks["parameters"].startswith("a ? wall\n")
    assert json.loads(chunks["everydream"])["prompt"] == "a \ud800 wall"


def test_all_that_the_drawing_depends_on_is_there_as_json(tmp_path: Path) -> None:
    request = image_request(passback="mine", num_inference_steps=7, guidance_scale=3.0, side=256)

    chunks = written(tmp_path / "image.png", request, clip_skip=0)

    assert json.loads(chunks["everydream"]) == {
        "job": "job-1",
        "step": 500,
        "prompt": "a red wall",
        "negative_prompt": None,
        "scheduler": "K-LMS",
        "seed": 42,
        "steps": 7,
        "guidance_scale": 3.0,
        "width": 256,
        "height": 256,
        "clip_skip": 0,
        "model": "last-wall-ep20-gs00500",
        "sha256": "0123456789abcdef" * 4,
        "loras": [],
        "passback": "mine",
        "version": VERSION,
    }


def test_the_same_drawing_gives_the_same_bytes_and_pixels_are_untouched(tmp_path: Path) -> None:
    image = Image.effect_noise((16, 16), 64).convert("RGB")
    for name in ("one.png", "two.png"):
        save(image, tmp_path / name, image_request("é"), seed=1, clip_skip=0, provenance=PROVENANCE)

    one = (tmp_path / "one.png").read_bytes()

    assert one == (tmp_path / "two.png").read_bytes()
    assert set(chunk_types(one)) == {"IHDR", "tEXt", "IDAT", "IEND"}
    with Image.open(tmp_path / "one.png") as again:
        assert again.tobytes() == image.tobytes()


def chunk_types(png: bytes) -> list[str]:
    """Walk the file by the PNG standard and verify its checksums."""
    types, place = [], 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        body = png[place + 4 : place + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(png[place + 8 + length : place + 12 + length])
        types.append(body[:4].decode())
        place += 12 + length
    return types
