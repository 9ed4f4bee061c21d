"""What ``everydream run`` and ``draw`` request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from everydream.image_options import Drawing
from everydream.job_spec import JobSpec
from everydream.outcome import Misused
from everydream.presets import explained, fields_of
from shared.errors import Refused
from shared.presets import PRESETS, Preset

URL = "https://example.com/photos.zip"


def job_spec(tmp_path: Path, config: Any = None, **more: Any) -> JobSpec:
    if config is None:
        return JobSpec("photos", **more)
    (tmp_path / "job.json").write_text(json.dumps(config))
    return JobSpec("photos", config=tmp_path / "job.json", **more)


def test_a_bare_folder_is_trained_by_the_endpoint_s_defaults(tmp_path: Path) -> None:
    assert job_spec(tmp_path).request(URL) == {
        "input": {"train": {"data_url": URL}, "inference": []}
    }


def test_prompts_and_fields_are_added(tmp_path: Path) -> None:
    changes = ("max_epochs=10", "lr=1e-6", "amp=false", "lr_scheduler=cosine", "validation={}",
               'sample_prompts=["a, b"]', "hf_repo_subfolder=a=b")  # fmt: skip

    request = job_spec(tmp_path, changes=changes, drawing=Drawing(("one", "two"))).request(URL)

    assert request["input"]["train"] == {
        "max_epochs": 10, "lr": 1e-6, "amp": False, "lr_scheduler": "cosine", "validation": {},
        "sample_prompts": ["a, b"], "hf_repo_subfolder": "a=b", "data_url": URL,
    }  # fmt: skip
    assert request["input"]["inference"] == [{"prompt": "one"}, {"prompt": "two"}]


@pytest.mark.parametrize("inference", [{"prompt": "one"}, [{"prompt": "one"}]])
def test_a_file_may_hold_a_whole_input(tmp_path: Path, inference: Any) -> None:
    config = {"train": {"lr": 1e-6, "data_url": "mine"}, "inference": inference}

    request = job_spec(tmp_path, config, changes=("lr=2e-6",), drawing=Drawing(("two",))).request(
        URL
    )

    assert request["input"] == {
        "train": {"lr": 2e-6, "data_url": URL},
        "inference": [{"prompt": "one"}, {"prompt": "two"}],
    }


def test_a_file_may_hold_the_fields_of_train_alone(tmp_path: Path) -> None:
    request = job_spec(tmp_path, {"lr": 1e-6}).request(URL)

    assert request["input"]["train"] == {"lr": 1e-6, "data_url": URL}


@pytest.mark.parametrize("config", [[1], "text", {"train": 5}])
def test_a_file_that_holds_something_else_is_reported(tmp_path: Path, config: Any) -> None:
    with pytest.raises(Refused, match=r"job\.json: expected an object: a whole request"):
        job_spec(tmp_path, config).request(URL)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is no JSON: Expecting property name enclosed in double quotes: line 1 column 2"),
        (b'{"caption": "\xe9t\xe9"}', "is not in UTF-8 (its byte 14); save it as UTF-8"),
        ("{}".encode("utf-16"), "is not in UTF-8 (its byte 1); save it as UTF-8"),
        (b'{"train": {"lr": 1, "lr": 2}}', ": 'lr' stands twice in one object; write it once"),
        (b"[" * 200_000, "its lists and objects are nested too deeply"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_with_what_is_wrong(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "job.json"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(Refused) as refused:
        JobSpec("photos", config=file).request(URL)

    assert str(refused.value).startswith(f"--config: {file}")
    assert reason in str(refused.value)


def test_a_file_may_begin_with_the_mark_that_some_programs_put_before_utf_8(
    tmp_path: Path,
) -> None:
    (tmp_path / "job.json").write_bytes(b'\xef\xbb\xbf{"lr": 1e-6}')

    request = JobSpec("photos", config=tmp_path / "job.json").request(URL)

    assert request["input"]["train"]["lr"] == 1e-6


def test_a_field_that_is_set_twice_differently_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misused, match="--set lr is given twice, as 1e-06 and as 2e-06"):
        job_spec(tmp_path, changes=("lr=1e-6", "lr=2e-6")).request(URL)
    twice = 'validation={"split": 0.1, "split": 0.2}'
    with pytest.raises(Misused, match="'split' stands twice in one object"):
        job_spec(tmp_path, changes=(twice,)).request(URL)
    same = job_spec(tmp_path, changes=("lr=1e-6", "lr=0.000001")).request(URL)
    assert same["input"]["train"]["lr"] == 1e-6


@pytest.mark.parametrize("change", ["lr", "=5", ""])
def test_a_change_without_a_name_or_a_value_is_reported(tmp_path: Path, change: str) -> None:
    with pytest.raises(Misused, match="expected name=value"):
        job_spec(tmp_path, changes=(change,)).request(URL)


def test_a_file_may_hold_a_whole_request(tmp_path: Path) -> None:
    config = {"input": {"train": {"lr": 1e-6}}, "webhook": "https://example.com/hook"}

    request = job_spec(tmp_path, config).request(URL)

    assert request["webhook"] == "https://example.com/hook"
    assert request["input"]["train"] == {"lr": 1e-6, "data_url": URL}


def test_a_file_may_name_the_data_or_a_model_to_draw_with(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"train": {"data_url": URL}}))
    assert JobSpec(config=file).checked()["input"]["train"] == {"data_url": URL}

    file.write_text(json.dumps({"model": "org/name", "inference": {"prompt": "one"}}))
    drawn = JobSpec(config=file, drawing=Drawing(("two",))).checked()
    prompts = [{"prompt": "one"}, {"prompt": "two"}]
    assert drawn == {"input": {"model": "org/name", "inference": prompts}}


@pytest.mark.parametrize(
    "more", [{"data": "photos"}, {"changes": ("lr=1e-6",)}, {"preset": "style"}]
)
def test_what_a_drawing_has_no_use_for_is_reported(more: Any) -> None:
    with pytest.raises(Misused, match="nothing is trained with `model`"):
        JobSpec(model="org/name", drawing=Drawing(("one",)), **more).request()


def test_the_id_of_a_check_is_data_that_is_not_uploaded() -> None:
    check = "0a6b2f3c-6f0e-4b0e-9d53-0c1f6b1f7c11"
    spec = JobSpec(check)

    assert spec.file is None
    assert spec.checked()["input"]["train"] == {"data_url": check}
    assert JobSpec(f"./{check}").file == Path(check), "a folder of that name"


def test_nothing_to_train_on_is_reported() -> None:
    with pytest.raises(Misused, match="give a folder of images, a zip, a URL or a check"):
        JobSpec().request()


def test_data_that_are_given_twice_are_reported() -> None:
    with pytest.raises(Misused, match="--set data_url: DATA is given, too"):
        JobSpec("photos", changes=["data_url=https://example.com/other.zip"]).request(URL)


@pytest.mark.parametrize("empty", [{}, "", 0, False])
def test_an_entry_to_draw_that_says_nothing_is_refused_and_not_left_out(
    empty: Any, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="inference"):
        job_spec(tmp_path, {"inference": empty}).checked()


def test_loras_are_added_to_the_model_with_the_weights_behind_their_names() -> None:
    loras = ("org/name:0.8", "https://example.com:8080/style.safetensors", "org/other:-.5")
    one = Drawing(("one",))

    several = JobSpec(model="sd_v1-5_vae", loras=loras, drawing=one).checked()["input"]
    alone = JobSpec(model=loras[1], base="org/name", drawing=one).checked()["input"]

    assert several["model"] == [
        "sd_v1-5_vae", {"model": "org/name", "weight": 0.8}, loras[1],
        {"model": "org/other", "weight": -0.5},
    ]  # fmt: skip
    assert (alone["model"], alone["base"]) == (loras[1], "org/name")


def test_how_to_draw_can_be_said_in_full() -> None:
    drawing = Drawing(
        prompts=("one",), negative="blurry", count=4, size="512x768", steps=20, guidance=5.0,
        scheduler="DDIM", seed=7,
    )  # fmt: skip

    (entry,) = JobSpec(model="org/name", drawing=drawing).checked()["input"]["inference"]

    assert entry == {
        "prompt": "one", "negative_prompt": "blurry", "num_outputs": 4, "width": 512,
        "height": 768, "num_inference_steps": 20, "guidance_scale": 5.0, "scheduler": "DDIM",
        "seed": 7,
    }  # fmt: skip


def test_what_is_said_of_drawing_counts_more_than_a_file(tmp_path: Path) -> None:
    config = {"train": {}, "inference": {"prompt": "one", "seed": 1, "width": 256}}

    request = job_spec(tmp_path, config, drawing=Drawing(seed=2, size="384")).request(URL)

    assert request["input"]["inference"] == [
        {"prompt": "one", "seed": 2, "width": 384, "height": 384}
    ]


def test_saying_how_to_draw_without_anything_to_draw_is_reported() -> None:
    with pytest.raises(Misused, match="give --prompt"):
        JobSpec("photos", drawing=Drawing(seed=2)).request(URL)


@pytest.mark.parametrize("size", ["large", "512x", "x512", "5.5", "512x768x3", "-1"])
def test_a_size_that_is_none_is_reported(size: str) -> None:
    with pytest.raises(Misused, match="expected a side or width x height: 512, 512x768"):
        JobSpec("photos", drawing=Drawing(("one",), size=size)).request(URL)


def test_every_mistake_is_found_before_the_upload_with_the_nearest_name(tmp_path: Path) -> None:
    changes = ("lr=much", "max_epoch=5")

    with pytest.raises(Refused) as refused:
        job_spec(tmp_path, changes=changes, drawing=Drawing(("one",), size="500")).checked()

    assert str(refused.value).splitlines()[0] == "the request is refused:"
    assert "  - input.train.max_epoch: no such field; did you mean max_epochs?" in str(
        refused.value
    )
    assert "input.train.lr: expected a number" in str(refused.value)
    assert "input.inference[0].width: expected one of 128" in str(refused.value)
    assert "example.com" not in str(refused.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_request_that_is_admitted(preset: Preset) -> None:
    train = JobSpec("photos", preset=preset).checked()["input"]["train"]

    assert train | fields_of(preset) == train
    assert len(explained(preset, train)) == len(fields_of(preset))
    assert all(re.search(r"\bdocs?/", line) for line in explained(preset, train))


def test_what_a_person_sets_counts_more_than_a_preset_and_it_is_said(tmp_path: Path) -> None:
    spec = job_spec(tmp_path, {"flip_p": 0.1}, preset="style", changes=("lr=1e-6",))

    train = spec.request(URL)["input"]["train"]

    assert (train["flip_p"], train["lr"], train["cond_dropout"]) == (0.1, 1e-6, 0.15)
    said = explained("style", train)
    assert "  flip_p: yours, 0.1, counts" in said
    assert "  lr: yours, 1e-06, counts" in said


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://user:secret@example.org/a.zip", "one with a user name or password"),
        ("ftp://example.org/a.zip", "expected an http or https URL"),
        ("https://", "expected an http or https URL"),
    ],
)
def test_a_url_that_is_not_taken_is_refused_as_one_and_is_no_path(url: str, reason: str) -> None:
    with pytest.raises(Refused, match=r"input\.train\.data_url: ") as refused:
        JobSpec(url).checked()

    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)
