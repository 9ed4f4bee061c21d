"""Parsing of requests: every field of the page, its default, its range, and its mistakes."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect as types

from services.fetcher.parsing.datasets.unused_options import OF_REQUEST
from services.gateway.jobs import request_parser
from services.gateway.jobs.fields import effects
from services.gateway.jobs.fields.descriptions import describe
from services.gateway.jobs.fields.effects import IN_INFERENCE, IN_POLICY, IN_TRAIN
from services.gateway.jobs.request_parser import MAX_LETTERS, Invalid, parse_request
from shared.request import (
    DEFAULT_BASE,
    Inference,
    LoraSource,
    ModelSource,
    Policy,
    Request,
    S3Config,
    Train,
    Validation,
    is_http_url,
)

URL = "https://example.com/dataset.zip"
S3 = {
    "accessId": "id-4711",
    "accessSecret": "secret-4711",
    "bucketName": "bucket",
    "endpointUrl": "https://s3.example.com",
}
SIDES = [128, 256, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024]
RESOLUTIONS = [256, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152]
SCHEDULERS = [
    "DDIM", "DDPM", "DPM-M", "DPM-S", "EULER-A", "EULER-D", "HEUN", "IPNDM", "KDPM2-A",
    "KDPM2-D", "PNDM", "K-LMS",
]  # fmt: skip
HUGE = 2**63
MODEL = (
    "sd_v1-5_vae.ckpt, the id of a job of yours, a hub id such as org/name, or an http or https"
    " URL of a hub page, a zipped diffusers folder, a .safetensors or a .ckpt file (paths are not"
    " read here)"
)
PATHS = [
    "/models/v1-5.safetensors", "/models/v1-5", "models/v1-5.safetensors", "v1-5.ckpt", "./model",
    "../model", "~/model", "a/b/c", "C:\\models\\v1-5.ckpt", "models\\v1-5", "file:///models/v1-5",
    "nonsense",
]  # fmt: skip
NOTHING_LEFT = (
    "disable_unet_training and disable_textenc_training are both true: nothing is left to train"
)
Ranges = dict[str, tuple[list[Any], list[Any]]]
"""For each field, accepted values and refused ones."""


def train(**fields: Any) -> Train:
    asked = parse_request({"input": {"train": {"data_url": URL, **fields}}}).train
    assert asked
    return asked


def entry(**fields: Any) -> Inference:
    body = {"input": {"train": {"data_url": URL}, "inference": {"prompt": "x", **fields}}}
    return parse_request(body).inference[0]


def mistakes(body: Any) -> list[str]:
    with pytest.raises(Invalid) as caught:
        parse_request(body)
    assert str(caught.value) == "; ".join(caught.value.mistakes)
    return caught.value.mistakes


def mistake(parse: Any, **fields: Any) -> str:
    with pytest.raises(Invalid) as caught:
        parse(**fields)
    (only,) = caught.value.mistakes
    return only


def test_no_request_has_the_schema_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"input": {"train": {"data_url": URL}, "inference": {"prompt": "x"}}, "s3Config": S3}
    first = parse_request(body)

    def read(kind: type) -> Any:
        raise AssertionError(f"the annotations of {kind.__name__} are read again")

    monkeypatch.setattr(effects, "fields", read)
    monkeypatch.setattr(types, "type_info", read)

    assert parse_request(body) == first


# --- The page ---------------------------------------------------------------------------------


def test_the_pages_example_gets_the_pages_defaults() -> None:
    request = parse_request(
        {
            "input": {
                "train": {"data_url": "https://LINK_TO_ZIP.FILE"},
                "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
            }
        }
    )
    assert request.train == Train(
        data_url="https://LINK_TO_ZIP.FILE", amp=True, batch_size=2, ckpt_every_n_minutes=20,
        clip_grad_norm=None, clip_skip=0, cond_dropout=0.04, disable_textenc_training=False,
        disable_unet_training=False, disable_xformers=False, flip_p=0.0,
        gradient_checkpointing=False, grad_accum=1, hf_repo_subfolder=None, lr=None,
        lr_decay_steps=None, lr_scheduler="constant", lr_warmup_steps=None, max_epochs=300,
        resolution=512, resume_ckpt_url="sd_v1-5_vae.ckpt", sample_prompts=[], sample_steps=250,
        save_full_precision=False, save_optimizer=False, scale_lr=False, seed=555,
        shuffle_tags=False, useadam8bit=True, rated_dataset=False,
        rated_dataset_target_dropout_percent=50,
    )  # fmt: skip
    assert request.inference == (
        Inference(
            prompt="a unique 123xyz concept name as a superhero", negative_prompt=None,
            width=512, height=512, num_outputs=1, num_inference_steps=50, guidance_scale=7.5,
            scheduler="K-LMS", seed=None, passback=None,
        ),
    )  # fmt: skip
    assert (request.s3, request.webhook) == (None, None)
    assert request.policy == Policy(executionTimeout=86_400_000, ttl=604_800_000)


def test_inference_may_be_one_a_list_or_nothing() -> None:
    def entries(value: Any) -> int:
        body = {"input": {"train": {"data_url": URL}, **value}}
        return len(parse_request(body).inference)

    assert entries({"inference": {"prompt": "x"}}) == 1
    assert entries({"inference": [{"prompt": "x"}, {"prompt": ""}]}) == 2
    assert (entries({}), entries({"inference": None}), entries({"inference": []})) == (0, 0, 0)


def test_the_rest_of_the_request_is_taken_too() -> None:
    request = parse_request(
        {
            "input": {"train": {"data_url": URL}},
            "s3Config": {**S3, "objectPath": "a/b"},
            "webhook": "https://example.com/hook",
            "webhookV2": "https://example.com/hook2",
            "policy": {"executionTimeout": 5000, "ttl": 10_000, "lowPriority": True},
        }
    )
    assert request.s3 == S3Config(**S3, objectPath="a/b")
    assert request.webhook == "https://example.com/hook"
    assert request.policy.executionTimeout == 5000


# --- Every field's type and range -------------------------------------------------------------

WHOLE: Ranges = {
    "batch_size": ([1, 1024], [0, 1025]),
    "ckpt_every_n_minutes": ([0, 1], [-1]),
    "clip_skip": ([0, 1, 2, 3, 4], [-1, 5]),
    "grad_accum": ([1, 1024], [0]),
    "lr_decay_steps": ([1], [0]),
    "lr_warmup_steps": ([0], [-1]),
    "max_epochs": ([1], [0]),
    "resolution": (RESOLUTIONS, [0, 128, 511, 1216, 512.5]),
    "sample_steps": ([1], [0]),
    "seed": ([-1, 0, HUGE - 1], [-2, HUGE]),
    "rated_dataset_target_dropout_percent": ([1, 100], [0, 101]),
    "keep_checkpoints": ([1], [0]),
    "keep_tags": ([0, 3], [-1]),
    "lora_conv_rank": ([0, 8, 128], [-1, 129]),
    "lora_rank": ([1, 16, 256], [0, 257]),
    "crops_per_image": ([0, 4, 1000], [-1, 1001]),
    "save_every_n_epochs": ([1], [0]),
    "timestep_start": ([0, 999], [-1, 1000]),
    "timestep_end": ([1, 1000], [0, 1001]),
}
NUMBERS: Ranges = {
    "clip_grad_norm": ([0.1, 1, 5.5], [0, -1.0]),
    "cond_dropout": ([0, 0.5, 1], [-0.1, 1.1]),
    "flip_p": ([0, 0.5, 1.0], [-0.1, 1.1]),
    "lr": ([1e-9, 1], [0, -1e-6, 1.5]),
    "ema_decay_rate": ([0.1, 0.9999], [0, 1.0]),
    "lora_alpha": ([0.001, 16, 1024], [0, 1e-60, 1025]),
    "min_snr_gamma": ([1, 5.0], [0, -1.0]),
    "pyramid_noise_discount": ([0, 0.03, 1], [-0.1, 1.1]),
    "text_encoder_lr": ([1e-9, 1], [0, -1e-6, 1.5]),
    "unmasked_weight": ([0, 0.5, 1], [-0.1, 1.1]),
    "zero_frequency_noise_ratio": ([0, 0.02, 1], [-0.1, 1.1]),
}
SWITCHES = [
    "amp", "disable_textenc_training", "disable_unet_training", "disable_xformers",
    "gradient_checkpointing", "save_full_precision", "save_optimizer", "scale_lr",
    "shuffle_tags", "useadam8bit", "rated_dataset", "enable_zero_terminal_snr", "lora_merge",
    "masked_loss",
]  # fmt: skip
ENTRY_WHOLE: Ranges = {
    "width": (SIDES, [0, 64, 513, 1088, 512.5]),
    "height": (SIDES, [0, 64, 513, 1088, 512.5]),
    "num_outputs": ([1, 10], [0, 11]),
    "num_inference_steps": ([1, 500], [0, 501]),
    "seed": ([-1, 0, HUGE - 1], [-2, HUGE]),
}
NO_WHOLE = [True, 1.5, "2", [2], {"a": 2}]
NO_NUMBER = [True, "0.5", [0.5], float("nan"), float("inf"), 10**400]
NO_SWITCH = [0, 1, "true", [], {}]
NO_TEXT = [0, True, 1.5, [], {}]


def check(parse: Any, name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        taken = getattr(parse(**{name: value}), name)
        assert taken == value
    for value in bad:
        text = mistake(parse, **{name: value})
        assert re.search(rf"\.{name}(\[\d+\])?: expected .+, got ", text), text


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_training(name: str) -> None:
    good, bad = WHOLE[name]
    check(train, name, good, bad + NO_WHOLE)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_training(name: str) -> None:
    good, bad = NUMBERS[name]
    check(train, name, good, bad + NO_NUMBER)
    assert isinstance(getattr(train(**{name: good[0]}), name), float)


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_training(name: str) -> None:
    check(train, name, [True, False], NO_SWITCH)


def test_texts_and_lists_of_training() -> None:
    check(train, "lr_scheduler", ["constant", "linear", "cosine", "polynomial"], ["Linear", "", 1])
    good = [DEFAULT_BASE, "sd_v1-5_vae", "https://x.org/m.ckpt", "org/name", "org/name@v1"]
    good += ["huggingface.co/org/name/tree/main/v1", "9d2f0b0a-1c1f-4f0f-8f34-0d6f1c2e8a10"]
    check(train, "resume_ckpt_url", good, ["", *PATHS, *NO_TEXT])
    check(train, "base", good, ["", *PATHS, *NO_TEXT])
    check(train, "hf_repo_subfolder", ["", "fp16"], NO_TEXT)
    check(train, "checkpoint_format", ["safetensors", "ckpt"], ["pt", "", 1])
    check(train, "loss_type", ["mse", "huber", "mse_huber", "huber_mse"], ["l1", "", 1])
    check(train, "sample_prompts", [[], ["a", ""]], ["a", [1], [None], {}, 3])


@pytest.mark.parametrize("name", ENTRY_WHOLE)
def test_whole_numbers_of_inference(name: str) -> None:
    good, bad = ENTRY_WHOLE[name]
    check(entry, name, good, bad + NO_WHOLE)


def test_every_side_goes_with_every_other() -> None:
    """The original accepted sizes like 832 x 1024, and failed after the training."""
    for width, height in itertools.product(SIDES, SIDES):
        drawn = entry(width=width, height=height)
        assert (drawn.width, drawn.height) == (width, height)


def test_the_rest_of_inference() -> None:
    check(entry, "guidance_scale", [1, 7.5, 20], [0.9, 20.1, *NO_NUMBER])
    check(entry, "scheduler", SCHEDULERS, ["ddim", "", 0])
    check(entry, "prompt", ["", "a cat", "ü" * 5000], NO_TEXT)
    check(entry, "negative_prompt", ["", "blurry"], NO_TEXT)
    check(entry, "passback", ["", "note 1"], NO_TEXT)


def test_a_held_out_split_is_an_object_whose_mistakes_are_named_too() -> None:
    assert train(validation={}).validation == Validation()
    asked: dict[str, Any] = {"val_split_proportion": 0.5, "every_n_epochs": 2, "seed": 0}
    assert train(validation=asked).validation == Validation(**asked)
    text = mistake(train, validation={"val_split_proportion": 1.0})
    assert text.startswith("input.train.validation.val_split_proportion: expected a number above 0")
    check(train, "validation", [None], [True, [], "x"])
    assert mistake(train, validation=True) == "input.train.validation: expected an object, got true"
    check(lambda **each: train(validation=each).validation, "every_n_epochs", [1], [0, True])


def test_the_first_timestep_is_below_the_last() -> None:
    assert "timestep_start 500 must be below" in mistake(
        train, timestep_start=500, timestep_end=500
    )


def test_no_field_is_left_untested() -> None:
    here = Path(__file__).read_text()
    for kind in (Train, Inference, Policy, S3Config):
        for name in kind.__struct_fields__:
            assert f'"{name}"' in here, name


def test_every_field_of_the_page_is_a_field_of_ours_with_the_pages_words() -> None:
    for kind in (Train, Inference, S3Config, Policy):
        for each in types.type_info(kind).fields:  # type: ignore[attr-defined]
            assert "something else" not in describe(each.type), each.name


def test_a_number_without_a_fraction_is_an_integer_however_it_is_written() -> None:
    taken = train(batch_size=2.0, resolution=512.0, seed=-1.0)

    assert (taken.batch_size, taken.resolution, taken.seed) == (2, 512, -1)
    assert all(type(each) is int for each in (taken.batch_size, taken.resolution, taken.seed))


# --- Null, missing, unknown -------------------------------------------------------------------


def test_null_is_the_same_as_left_out_where_it_has_no_meaning_of_its_own() -> None:
    names = [name for name in Train.__struct_fields__ if name != "data_url"]
    nulls = train(**dict.fromkeys(names))
    meaningful = {"ckpt_every_n_minutes"}
    for name in set(names) - meaningful:
        assert getattr(nulls, name) == getattr(train(), name), name
    assert nulls.ckpt_every_n_minutes is None
    assert entry(width=None, seed=None, scheduler=None) == entry()
    body = {"input": {"train": {"data_url": URL}}, "s3Config": None, "webhook": None}
    assert parse_request({**body, "policy": None}).policy == Policy()
    assert parse_request({**body, "webhook": ""}).webhook is None


def test_what_is_required_is_named() -> None:
    wanted = "required, but missing; expected an http or https URL, or the id of a dataset check"
    assert mistakes({"input": {"train": {}}}) == [f"input.train.data_url: {wanted}"]
    assert mistakes({"input": {"train": {"data_url": None}}}) == [f"input.train.data_url: {wanted}"]
    assert mistakes({"input": {"train": {"data_url": URL}, "inference": [{}]}}) == [
        "input.inference[0].prompt: required, but missing; expected a string"
    ]
    assert "input: expected an object, got null" in mistakes({})
    assert mistakes({"input": {"train": 5}}) == ["input.train: expected an object, got 5"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("batchsize", "batch_size"), ("max_epoch", "max_epochs"), ("useAdam8bit", "useadam8bit")],
)
def test_an_unknown_field_gets_the_nearest_known_name(wrong: str, near: str) -> None:
    assert mistake(train, **{wrong: 1}) == (
        f"input.train.{wrong}: no such field; did you mean {near}?"
    )


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("learning_rate", "lr"), ("learningRate", "lr"), ("epochs", "max_epochs"),
        ("learning_rate_scheduler", "lr_scheduler"),
        ("text_encoder_learning_rate", "text_encoder_lr"),
        ("gradient_accumulation_steps", "grad_accum"),
        ("noise_offset", "zero_frequency_noise_ratio"),
        ("network_dim", "lora_rank"),
        ("network_alpha", "lora_alpha"),
        ("conv_dim", "lora_conv_rank"),
        ("network_weights", "resume_ckpt_url"),
        ("base_model", "resume_ckpt_url"), ("model", "resume_ckpt_url"),
    ],
)  # fmt: skip
def test_a_field_s_name_in_other_trainers_gets_ours(wrong: str, near: str) -> None:
    assert mistake(train, **{wrong: 1}) == (
        f"input.train.{wrong}: no such field; did you mean {near}?"
    )


@pytest.mark.parametrize("wrong", ["zzzzzz", "rate", "x", "", "sample", "_" * 200])
def test_an_unknown_field_gets_a_few_names_and_not_all(wrong: str) -> None:
    told = mistake(train, **{wrong: 1})

    named = [name for name in Train.__struct_fields__ if re.search(rf"\b{name}\b", told[20:])]
    assert 1 <= len(named) <= 3, told


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"train": {"data_url": URL}}, ["train: put train inside input"]),
        ({"model": "a/b", "inference": {"prompt": "x"}},
         ["model: put model inside input", "inference: put inference inside input"]),
        ({"data_url": URL}, ["data_url: put data_url inside input.train"]),
        ({"input": {"train": {"data_url": URL}, "webhook": URL, "flip_p": 0.5}},
         ["input.webhook: put webhook beside input",
          "input.flip_p: put flip_p inside input.train"]),
        ({"input": {"train": {"data_url": URL, "prompt": "x"}}},
         ["input.train.prompt: put prompt inside input.inference"]),
        ({"input": {"train": {"data_url": URL}}, "seed": 3},
         ["seed: put seed inside input.train or inside input.inference"]),
        ({"input": {"train": {"data_url": URL}, "inference": [{"prompt": "x", "lr": 1}]}},
         ["input.inference[0].lr: put lr inside input.train"]),
    ],
)  # fmt: skip
def test_a_field_in_the_wrong_place_is_told_the_right_one(body: Any, told: list[str]) -> None:
    assert mistakes(body) == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_epochs": 0}, "an integer from 1 to 2147483647"),
        ({"seed": 2**63}, "an integer from -1 to 9223372036854775807"),
        ({"lr": 2}, "a number above 0 of at most 1"),
    ],
)
def test_every_upper_bound_is_told(fields: dict[str, Any], told: str) -> None:
    assert f": expected {told}" in mistake(train, **fields)


def test_an_unknown_field_like_no_other_gets_the_list() -> None:
    body = {"input": {"train": {"data_url": URL}}, "zzzzzz": 1}
    known = "input, s3Config, webhook, webhookV2, webhook_events_filter, policy"
    assert mistakes(body) == [f"zzzzzz: no such field; known: {known}"]


def test_all_mistakes_come_at_once() -> None:
    body = {
        "input": {
            "train": {"flip_p": 2, "amp": "yes", "epochs": 3},
            "inference": [{"prompt": "ok"}, {"prompt": 7, "width": 100}],
            "extra": 1,
        },
        "s3Config": {"accessId": ""},
        "webhook": "not a url",
        "policy": {"ttl": 1},
    }
    found = mistakes(body)
    paths = [text.partition(":")[0] for text in found]
    assert sorted(paths) == sorted(
        [
            "input.extra", "input.train.epochs", "input.train.data_url", "input.train.amp",
            "input.train.flip_p", "input.inference[1].prompt", "input.inference[1].width",
            "s3Config.accessId", "s3Config.accessSecret", "s3Config.bucketName",
            "s3Config.endpointUrl", "webhook", "policy.ttl",
        ]
    )  # fmt: skip


def test_a_mistake_of_two_fields_together_is_reported_beside_those_of_each() -> None:
    body = {
        "input": {
            "train": {
                "data_url": "ftp://x.org/a.zip",
                "resume_ckpt_url": "store:jobs/1",
                "flip_p": 2,
                "disable_unet_training": True,
                "disable_textenc_training": True,
                "timestep_start": 999,
                "timestep_end": 3,
            }
        },
        "s3Config": {**S3, "endpointUrl": "ftp://4711", "nonsense": 1},
    }

    assert mistakes(body) == [
        'input.train.data_url: expected an http or https URL, or the id of a dataset check, got "ftp://x.org/a.zip"',
        "input.train.flip_p: expected a number from 0 to 1, got 2",
        f'input.train.resume_ckpt_url: expected {MODEL}, got "store:jobs/1"',
        f"input.train: {NOTHING_LEFT}",
        "input.train: timestep_start 999 must be below timestep_end 3",
        f"s3Config.nonsense: no such field; known: {', '.join(S3Config.__struct_fields__)}",
        "s3Config.endpointUrl: expected an http or https URL without a query, got something else",
    ]


def test_each_wrong_item_of_a_list_is_reported_with_its_index() -> None:
    body = {"input": {"train": {"data_url": URL, "sample_prompts": ["a", 1, None]}}}

    assert mistakes(body) == [
        "input.train.sample_prompts[1]: expected a string, got 1",
        "input.train.sample_prompts[2]: expected a string, got null",
    ]


def test_texts_that_results_repeat_are_bounded_by_how_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_parser, "MAX_DRAWN_LETTERS", 20)
    monkeypatch.setattr(request_parser, "MAX_SAMPLE_LETTERS", 4)
    texts = {"prompt": "12345", "negative_prompt": "12", "passback": "123"}
    train = {"data_url": URL, "sample_prompts": ["12", "34"]}
    twice, thrice = ({**texts, "num_outputs": number} for number in (2, 3))

    parse_request({"input": {"train": train, "inference": twice}})
    train = {**train, "sample_prompts": ["12", "345"]}
    drawn = "letters in prompts and passbacks, counted for each image"
    assert mistakes({"input": {"train": train, "inference": thrice}}) == [
        f"input.inference: expected at most 20 {drawn}, got 30",
        "input.train.sample_prompts: expected at most 4 letters in all, got 5",
    ]
    assert mistakes({"input": {"train": train, "inference": [twice, {"prompt": "1"}]}})


@pytest.mark.parametrize("body", [None, 1, "x", [], True, {"input": []}, {"input": "x"}])
def test_what_is_no_object_is_refused(body: Any) -> None:
    assert mistakes(body)


# --- Drawing with a finished model ------------------------------------------------------------

ONE_WAY = (
    "input: expected either train, to fine-tune a model, or model, to draw with a finished one, got"
)
ENTRY = {"prompt": "a cat"}


def test_a_finished_model_may_be_named_instead_of_a_training() -> None:
    request = parse_request({"input": {"model": "org/name", "inference": ENTRY}})

    assert request.train is None
    assert request.model == ModelSource(source="org/name")
    assert request.inference == (Inference(prompt="a cat"),)


@pytest.mark.parametrize("nothing", [{}, {"train": None, "model": None}, {"inference": ENTRY}])
def test_a_request_without_training_and_model_gets_an_error_that_names_both(
    nothing: dict[str, Any],
) -> None:
    assert mistakes({"input": nothing}) == [f"{ONE_WAY} neither"]


def test_a_request_has_a_training_or_a_model_and_not_both() -> None:
    both = {"train": {"data_url": URL, "flip_p": 2}, "model": "", "inference": ENTRY}

    assert mistakes({"input": both}) == [
        f"{ONE_WAY} both",
        "input.train.flip_p: expected a number from 0 to 1, got 2",
        'input.model: expected a string, not empty, got ""',
    ]


@pytest.mark.parametrize("wrong", ["", 7, True, {}])
def test_a_model_is_named_by_a_text(wrong: Any) -> None:
    (told,) = mistakes({"input": {"model": wrong, "inference": ENTRY}})

    assert told.startswith("input.model: expected a string, not empty, got ")


FILE = "https://example.com/anna.safetensors"


def test_a_model_may_be_a_list_with_weighed_loras_or_a_lora_with_its_base_beside_it() -> None:
    def model(**inputs: Any) -> ModelSource | None:
        return parse_request({"input": {"inference": ENTRY, **inputs}}).model

    anna = {"model": FILE, "weight": 0.8}
    assert model(model=["org/name", anna, FILE]) == ModelSource(
        source="org/name",
        loras=(LoraSource(source=FILE, weight=0.8), LoraSource(source=FILE)),
    )
    assert model(model=[anna]) == ModelSource(source=FILE, weight=0.8)
    assert model(model=FILE, base="org/name") == ModelSource(source=FILE, base="org/name")
    assert model(model=FILE, base=None) == ModelSource(source=FILE)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"model": []}, "input.model: expected a model and at most 10 LoRAs, got a list of 0"),
        ({"model": ["a/b"] * 12}, "input.model: expected a model and at most 10 LoRAs, got a list"),
        ({"model": ["a/b", 7]}, "input.model[1]: expected a model, or an object with"),
        ({"model": ["a/b", {}]}, "input.model[1].model: required, but missing; expected sd_v1-5"),
        ({"model": [{"model": "../x"}]}, "input.model[0].model: expected sd_v1-5_vae.ckpt, "),
        ({"model": ["../x", "a/b"]}, "input.model[0]: expected sd_v1-5_vae.ckpt, "),
        ({"model": [{"model": "a/b", "weight": 11}]}, "input.model[0].weight: expected a number f"),
        ({"model": [{"model": "a/b", "scale": 1}]}, "input.model[0].scale: no such field; known: "),
        ({"model": "a/b", "base": 5}, "input.base: expected a string, not empty, got 5"),
        (
            {"model": ["a/b"], "base": "a/b"},
            "input.base: goes with an input.model that is one",
        ),
        ({"model": ["a/b", "x" * 9000 + "/a"]}, "input.model[1]: expected sd_v1-5_vae.ckpt, the"),
        (
            {"model": ["a/b", f"https://a.b/{'x' * 9000}"]},
            "input.model[1]: expected at most 8192",
        ),
    ],
)
def test_mistakes_in_a_list_of_models_are_told_where_they_are(
    inputs: dict[str, Any], told: str
) -> None:
    (mistake,) = mistakes({"input": {"inference": ENTRY, **inputs}})

    assert mistake.startswith(told)


def test_the_base_of_a_lora_that_is_trained_on_stands_in_train() -> None:
    (told,) = mistakes({"input": {"train": {"data_url": URL}, "base": "org/name"}})

    assert told.endswith("beside resume_ckpt_url it is input.train.base")


@pytest.mark.parametrize("wrong", [[11], [-10.5], ["1"], [None], [1.0] * 11, 3])
def test_the_weights_of_an_entry_are_a_few_numbers(wrong: Any) -> None:
    body = {"input": {"model": "org/name", "inference": {**ENTRY, "loras": wrong}}}

    (told,) = mistakes(body)

    assert re.match(r"input\.inference\.loras(\[0\])?: expected .*, got ", told)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_as_a_model_is_a_mistake_that_says_what_is_possible(path: str) -> None:
    body = {"input": {"train": {"data_url": URL, "resume_ckpt_url": path}}}

    (told,) = mistakes(body)

    assert told.startswith(f"input.train.resume_ckpt_url: expected {MODEL}, got ")


def test_no_client_names_a_model_by_the_key_of_our_store() -> None:
    assert mistakes({"input": {"model": "store:jobs/1/model", "inference": ENTRY}}) == [
        f'input.model: expected {MODEL}, got "store:jobs/1/model"'
    ]


@pytest.mark.parametrize("nothing", [{}, {"inference": None}, {"inference": []}])
def test_with_a_named_model_there_is_something_to_draw(nothing: dict[str, Any]) -> None:
    assert mistakes({"input": {"model": "org/name", **nothing}}) == [
        "input.inference: required with input.model, but missing"
    ]


def test_a_wrong_entry_is_not_also_called_missing() -> None:
    assert mistakes({"input": {"model": "org/name", "inference": [{}]}}) == [
        "input.inference[0].prompt: required, but missing; expected a string"
    ]


# --- Checks across fields, URLs, secrets ------------------------------------------------------


def test_something_must_be_left_to_train() -> None:
    text = mistake(train, disable_unet_training=True, disable_textenc_training=True)
    assert "nothing is left to train" in text


@pytest.mark.parametrize(
    "url",
    ["ftp://x.org/a.zip", "file:///etc/passwd", "x.org/a.zip", "https://", "http://u:p@x.org/",
     "http://[::1", "http://[1:2]/", "http://x.org:70000/", "//x.org/a", "javascript:alert(1)"],
)  # fmt: skip
def test_only_web_addresses_without_credentials_are_taken(url: str) -> None:
    assert not is_http_url(url)
    assert "http or https URL" in mistake(train, data_url=url)
    body = {"input": {"train": {"data_url": URL}}, "webhook": url}
    assert "webhook: expected an http or https URL" in mistakes(body)[0]


@pytest.mark.parametrize(
    "url",
    ["https://me:hunter2@x.org/a.zip", "https://hunter2@x.org", "ftp://x.org/a.zip?key=hunter2",
     "https://me:hunter2@x.org/a.zip?b=hunter2", "https://me:pa?hunter2@x.org/"],
)  # fmt: skip
def test_what_may_be_a_key_in_an_address_is_not_shown(url: str) -> None:
    for told in (
        mistake(train, data_url=url),
        mistakes({"input": {"train": {"data_url": URL}}, "webhook": url})[0],
    ):
        assert "hunter2" not in told
        assert "x.org" in told


def test_policy_has_the_originals_bounds() -> None:
    def policy(**fields: Any) -> Policy:
        return parse_request({"input": {"train": {"data_url": URL}}, "policy": fields}).policy

    week = 7 * 24 * 3600 * 1000
    check(policy, "executionTimeout", [5_000, week], [4_999, week + 1, *NO_WHOLE])
    check(policy, "ttl", [10_000, week], [9_999, week + 1, *NO_WHOLE])
    check(policy, "lowPriority", [True, False], NO_SWITCH)


@pytest.mark.parametrize("name", ["accessId", "accessSecret", "bucketName", "endpointUrl"])
@pytest.mark.parametrize("wrong", [4711, "", None, ["secret-4711"], "ftp://secret-4711"])
def test_no_value_of_the_bucket_is_ever_shown(name: str, wrong: Any) -> None:
    body = {"input": {"train": {"data_url": URL}}, "s3Config": {**S3, name: wrong}}
    if wrong == "ftp://secret-4711" and name in ("accessId", "accessSecret"):
        assert parse_request(body).s3
        return
    (text,) = mistakes(body)
    assert text.startswith(f"s3Config.{name}")
    assert "4711" not in text


ID = "an access id, in ASCII without blanks and line breaks"
SECRET = "a secret without blanks at its ends and without line breaks"
BUCKET = "the bucket's name alone: at most 255 of A-Z, a-z, 0-9, . _ and -, not . first"
TWICE = "the S3 service alone, got one whose path ends with the bucket's name: leave it out there"
PATH = "names with one slash between them, at most 700 bytes and 255 each"


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("accessId", "id-4711\n", f"{ID}, got one with a line break at its end or start"),
        ("accessId", " id-4711", f"{ID}, got one with blanks at its ends"),
        ("accessId", "id 4711", f"{ID}, got one with blanks or letters beyond ASCII in it"),
        ("accessSecret", "4711\r\n", f"{SECRET}, got one with a line break at its end or start"),
        ("accessSecret", "4711 ", f"{SECRET}, got one with blanks at its ends"),
        ("accessSecret", "4711\u00a0", f"{SECRET}, got one with blanks at its ends"),
        ("accessSecret", "\ufeff4711", f"{SECRET}, got one with blanks at its ends"),
        ("accessSecret", "47\n11",
         f"{SECRET}, got one with a line break or another control character in it"),
        ("bucketName", "s3://b4711", f"{BUCKET}, got an address: leave out s3:// and the like"),
        ("bucketName", " b4711", f"{BUCKET}, got one with blanks at its ends"),
        ("bucketName", "b4711/sub",
         f"{BUCKET}, got a path: what comes after the bucket's name belongs into objectPath"),
        ("bucketName", "arn:aws:s3:4711", f"{BUCKET}, got an ARN"),
        ("bucketName", "b\u00fc4711", f"{BUCKET}, got one with other characters, or longer"),
        ("objectPath", "/a4711//b/", f"{PATH}, got one with two slashes in a row"),
        ("objectPath", "a4711/../b", f"{PATH}, got one with . or .. as a name"),
        ("objectPath", "a4711 ", f"{PATH}, got one with blanks at its ends"),
        ("objectPath", "4711/" * 200, f"{PATH}, got a longer one"),
        ("endpointUrl", "https://4711:4711@s3.example.com",
         "an http or https URL without a query, got one with a user name or password"),
        ("endpointUrl", "https://s3.example.com/4711/bucket/", TWICE),
    ],
)  # fmt: skip
def test_what_a_bucket_s_service_would_refuse_is_refused_at_once_and_never_shown(
    name: str, wrong: str, told: str
) -> None:
    body = {"input": {"train": {"data_url": URL}}, "s3Config": {**S3, name: wrong}}

    assert mistakes(body) == [f"s3Config.{name}: expected {told}"]
    assert "4711" not in told


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("objectPath", "/a/b/"), ("objectPath", "/"), ("objectPath", "a b/\u00fc/.c..d"),
        ("accessSecret", "wJalrXUtnFEMI/K7MDENG+bPx"), ("accessSecret", "a p\u00e4ss w\u00f6rd"),
        ("bucketName", "My_old.bucket-1"), ("endpointUrl", "https://x.example.com/storage/v1/s3"),
        ("endpointUrl", "http://127.0.0.1:9000/"),
    ],
)  # fmt: skip
def test_what_a_bucket_s_service_takes_is_taken(name: str, right: str) -> None:
    body = {"input": {"train": {"data_url": URL}}, "s3Config": {**S3, name: right}}

    assert getattr(parse_request(body).s3, name) == right


def test_an_address_with_a_password_is_refused_for_that_and_not_for_its_scheme() -> None:
    url = "https://me:hunter2@x.org/hook"
    told = 'got "https://x.org/hook": one with a user name or password'
    body = {"input": {"train": {"data_url": url, "resume_ckpt_url": url}}, "webhook": url}

    data = "an http or https URL, or the id of a dataset check"
    assert mistakes(body) == [
        f"input.train.data_url: expected {data}, {told}",
        f"input.train.resume_ckpt_url: expected {MODEL}, {told}",
        f"webhook: expected an http or https URL, {told}",
    ]


def test_a_bucket_that_is_no_object_is_not_shown_either() -> None:
    body = {"input": {"train": {"data_url": URL}}, "s3Config": "secret-4711"}
    assert all("4711" not in text for text in mistakes(body))


def test_secrets_hide_in_logs() -> None:
    request = parse_request({"input": {"train": {"data_url": URL}}, "s3Config": S3})
    assert "4711" not in repr(request)
    assert "4711" not in str(request.s3)


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(mistake(train, lr_scheduler="x" * 10_000)) < 300


# --- Whatever comes ---------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.dictionaries(st.sampled_from(Train.__struct_fields__), JSON, max_size=6)
ENTRIES = st.dictionaries(st.sampled_from(Inference.__struct_fields__), JSON, max_size=6)


@settings(deadline=None)
@given(
    st.one_of(
        JSON,
        st.fixed_dictionaries(
            {
                "input": st.fixed_dictionaries(
                    {"inference": ENTRIES | JSON},
                    optional={"train": FIELDS, "model": st.just("org/name") | JSON},
                )
            },
            optional={"s3Config": JSON, "webhook": JSON, "policy": JSON},
        ),
    )
)
def test_any_body_is_a_request_or_a_list_of_mistakes(body: Any) -> None:
    request, told = parsed(body)
    if request is None:
        assert told
    else:  # it can travel
        assert msgspec.json.decode(msgspec.json.encode(request), type=Request) == request


def parsed(body: Any) -> tuple[Request | None, list[str]]:
    try:
        return parse_request(body), []
    except Invalid as invalid:
        return None, invalid.mistakes


# --- Webhooks


def request_with(**top: Any) -> dict[str, Any]:
    return {"input": {"train": {"data_url": URL}}, **top}


@pytest.mark.parametrize("named", [["output", "start"], ["start", "output", "start"]])
def test_the_events_of_a_webhook_may_be_named(named: list[str]) -> None:
    assert parse_request(request_with(webhook_events_filter=named)).webhook_events == (
        "start",
        "output",
    )
    assert parse_request(request_with(webhook_events_filter=None)).webhook_events == ()
    assert parse_request(request_with()).webhook_events == ()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (["start", "logs"], "[1]"), ([["start"]], "[0]"), ([None], "[0]"), ([], ""), ("start", ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_an_unknown_webhook_event_is_reported(given: Any, path: str) -> None:
    (mistake,) = mistakes(request_with(webhook_events_filter=given))

    assert mistake.startswith(f"webhook_events_filter{path}: expected ")
    assert "one of start, output, completed, got " in mistake


def test_a_field_without_effect_is_accepted_with_a_warning() -> None:
    asked = request_with(webhookV2="https://example.com/hook2")

    assert parse_request(asked).warnings == ("webhookV2 has no effect",)
    assert parse_request(request_with(webhookV2="")).warnings == ()


NO_EFFECT: dict[str, list[tuple[dict[str, Any], dict[str, Any], str]]] = {
    "hf_repo_subfolder": [
        ({"hf_repo_subfolder": "a"}, {"resume_ckpt_url": "org/name"}, "with this resume_ckpt_url"),
        (
            {"hf_repo_subfolder": "a", "resume_ckpt_url": "12345678-" + "abcd-" * 3 + "0" * 12},
            {"resume_ckpt_url": "https://example.com/a.zip"},
            "with this resume_ckpt_url",
        ),
    ],
    "keep_checkpoints": [
        (
            {"keep_checkpoints": 2, "ckpt_every_n_minutes": None},
            {"ckpt_every_n_minutes": 5},
            "2 has no effect without ckpt_every_n_minutes and save_every_n_epochs, but on what",
        ),
        (
            {"keep_checkpoints": 2, "ckpt_every_n_minutes": 0},
            {"save_every_n_epochs": 5},
            "without ckpt_every_n_minutes and save_every_n_epochs",
        ),
    ],
    "lr": [
        (
            {"lr": 1e-5, "text_encoder_lr": 1e-6, "disable_unet_training": True},
            {"text_encoder_lr": None},
            "1e-05 has no effect with disable_unet_training and text_encoder_lr",
        )
    ],
    "base": [
        (
            {"base": "org/name"},
            {"resume_ckpt_url": "https://example.com/anna.safetensors"},
            "has no effect without a resume_ckpt_url that names a LoRA",
        )
    ],
    "lora_alpha": [
        ({"lora_alpha": 8}, {"lora_rank": 4}, "8 has no effect without lora_rank"),
    ],
    "lora_conv_rank": [
        ({"lora_conv_rank": 8}, {"lora_rank": 4}, "8 has no effect without lora_rank"),
        (
            {"lora_conv_rank": 8, "lora_rank": 4, "disable_unet_training": True},
            {"disable_unet_training": False},
            "8 has no effect with disable_unet_training",
        ),
    ],
    "lora_merge": [
        ({"lora_merge": True}, {"lora_rank": 4}, "true has no effect without lora_rank"),
        (
            {"lora_merge": True},
            {"resume_ckpt_url": "0b9ff3a4-9a2e-4f43-8b6c-0f1ad2dc2f6e"},
            "true has no effect without lora_rank",
        ),
    ],
    "lr_decay_steps": [
        (
            {"lr_decay_steps": 5},
            {"lr_scheduler": "linear"},
            "5 has no effect with lr_scheduler constant",
        )
    ],
    "lr_warmup_steps": [
        (
            {"lr_warmup_steps": 5},
            {"lr_scheduler": "cosine"},
            "5 has no effect with lr_scheduler constant",
        ),
        ({"lr_warmup_steps": 5}, {"lr_warmup_steps": 0}, "with lr_scheduler constant"),
    ],
    "rated_dataset": [
        (
            {"rated_dataset": True, "max_epochs": 2},
            {"max_epochs": 3},
            "true has no effect with so few max_epochs",
        ),
        (
            {"rated_dataset": True, "rated_dataset_target_dropout_percent": 100},
            {"rated_dataset_target_dropout_percent": 99},
            "keeps every image",
        ),
    ],
    "rated_dataset_target_dropout_percent": [
        (
            {"rated_dataset_target_dropout_percent": 30},
            {"rated_dataset": True},
            "30 has no effect without rated_dataset",
        )
    ],
    "save_every_n_epochs": [
        ({"save_every_n_epochs": 7, "max_epochs": 7}, {"max_epochs": 8}, "7 has no effect with so")
    ],
    "scale_lr": [
        ({"scale_lr": True, "batch_size": 1}, {"grad_accum": 2}, "true has no effect with batch_")
    ],
    "unmasked_weight": [
        ({"unmasked_weight": 0.5}, {"masked_loss": True}, "0.5 has no effect without masked_loss"),
        ({"unmasked_weight": 0}, {"masked_loss": True}, "0 has no effect without masked_loss"),
    ],
    "text_encoder_lr": [
        (
            {"text_encoder_lr": 1e-6, "disable_textenc_training": True},
            {"disable_textenc_training": False},
            "1e-06 has no effect with disable_textenc_training",
        )
    ],
}
"""By option of ``train``: beside what it has no effect, beside what it has one, and the warning."""
WITH_THE_DATASET = {"keep_tags", "masked_loss", "sample_steps", "shuffle_tags"}
"""Told of in the report, by the pictures that there are."""
ALWAYS = {
    "amp", "batch_size", "checkpoint_format", "ckpt_every_n_minutes", "clip_grad_norm",
    "clip_skip", "cond_dropout", "crops_per_image", "data_url", "disable_textenc_training",
    "disable_unet_training", "disable_xformers", "ema_decay_rate", "enable_zero_terminal_snr",
    "flip_p", "grad_accum", "gradient_checkpointing", "loss_type", "lora_rank", "lr_scheduler",
    "max_epochs", "min_snr_gamma", "optimizer", "pyramid_noise_discount", "resolution",
    "resume_ckpt_url", "sample_prompts",
    "save_full_precision", "save_optimizer", "seed", "timestep_end", "timestep_start",
    "useadam8bit", "validation", "zero_frequency_noise_ratio",
}  # fmt: skip
"""They have an effect whatever the others are."""


def warnings_of(**train: Any) -> list[str]:
    asked = {"input": {"train": {"data_url": "https://example.com/a.zip", **train}}}
    return list(parse_request(asked).warnings)


def test_of_every_option_it_is_known_when_it_has_no_effect() -> None:
    known = [*NO_EFFECT, *WITH_THE_DATASET, *ALWAYS]

    assert sorted(known) == sorted(Train.__struct_fields__)
    assert NO_EFFECT.keys() == IN_TRAIN.keys()
    assert OF_REQUEST.keys() == WITH_THE_DATASET
    assert {*Inference.__struct_fields__} - IN_INFERENCE.keys() == {
        "prompt", "width", "height", "num_outputs", "num_inference_steps", "guidance_scale",
        "scheduler", "seed", "passback", "loras",
    }  # fmt: skip
    assert {*Policy.__struct_fields__} - IN_POLICY.keys() == {"ttl", "lowPriority"}
    assert Validation.__struct_fields__ == ("val_split_proportion", "every_n_epochs", "seed")


@pytest.mark.parametrize(
    ("option", "without", "beside", "words"),
    [(option, *case) for option, cases in NO_EFFECT.items() for case in cases],
)
def test_an_option_that_cannot_do_what_it_is_for_is_warned_of(
    option: str, without: dict[str, Any], beside: dict[str, Any], words: str
) -> None:
    (warning,) = warnings_of(**without)

    assert warning.startswith(f"input.train.{option} ")
    assert words in warning
    assert warnings_of(**{**without, **beside}) == []


def test_options_as_by_default_and_a_warm_up_that_fits_have_no_warning() -> None:
    train = Train(data_url="https://example.com/a.zip")
    defaults = {name: getattr(train, name) for name in Train.__struct_fields__}

    assert warnings_of(**defaults) == []
    assert warnings_of(lr_scheduler="cosine", lr_warmup_steps=200) == []
    assert warnings_of(lr_scheduler="linear", lr_warmup_steps=49, lr_decay_steps=50) == []
    (late,) = warnings_of(lr_scheduler="linear", lr_warmup_steps=200, lr_decay_steps=50)
    assert "lr_warmup_steps 200 is not below lr_decay_steps 50" in late


@pytest.mark.parametrize(
    ("given", "instead", "words"),
    [
        (
            {"webhook_events_filter": ["start"]},
            {"webhook_events_filter": ["start"], "webhook": "https://example.com/hook"},
            "webhook_events_filter has no effect without webhook",
        ),
        (
            {"policy": {"executionTimeout": 60_000, "ttl": 60_000}},
            {"policy": {"executionTimeout": 50_000, "ttl": 60_000}},
            "policy.executionTimeout 60000 has no effect with a ttl that is not longer",
        ),
    ],
)
def test_what_stands_beside_the_input_without_effect_is_warned_of(
    given: dict[str, Any], instead: dict[str, Any], words: str
) -> None:
    asked = {"input": {"train": {"data_url": "https://example.com/a.zip"}}}

    assert parse_request({**asked, **given}).warnings == (words,)
    assert parse_request({**asked, **instead}).warnings == ()


def test_a_negative_prompt_without_guidance_is_warned_of_once() -> None:
    plain = {"prompt": "a cat", "negative_prompt": "dark"}
    idle = {**plain, "guidance_scale": 1}
    one, several = ({"input": {"model": "org/name", "inference": each}} for each in (
        idle, [plain, idle, idle],
    ))  # fmt: skip

    words = "input.inference.negative_prompt has no effect with guidance_scale 1"
    assert parse_request(one).warnings == (words,)
    assert parse_request(several).warnings == (f"{words}, in 2 of its entries",)


def test_texts_that_a_record_repeats_are_bounded_and_every_one_is_named() -> None:
    long = "https://x.org/" + "x" * MAX_LETTERS
    bucket = {**S3, "accessId": long, "accessSecret": long, "endpointUrl": long}
    train = {"data_url": long, "resume_ckpt_url": long, "hf_repo_subfolder": long}
    body = {"input": {"train": train}, "webhook": long, "s3Config": bucket}
    draw = {"input": {"model": long, "inference": ENTRY}}

    told = [*mistakes(body), *mistakes(draw)]

    wrong = f"expected at most {MAX_LETTERS} letters, got {len(long)}"
    assert {each.removesuffix(f": {wrong}") for each in told} == {
        *(f"input.train.{name}" for name in train),
        *(f"s3Config.{name}" for name in ("accessId", "accessSecret", "endpointUrl")),
        *("webhook", "input.model"),
    }
    just = long[:MAX_LETTERS]
    assert parse_request({"input": {"train": {"data_url": just}}, "webhook": just}).webhook == just


def test_a_lora_is_asked_for_as_safetensors() -> None:
    asked = {"data_url": "https://example.com/a.zip", "lora_rank": 4, "checkpoint_format": "ckpt"}

    with pytest.raises(Invalid) as invalid:
        parse_request({"input": {"train": asked}})

    assert invalid.value.mistakes == [
        "input.train: a LoRA (lora_rank) is written as safetensors; leave checkpoint_format out"
    ]


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        ({"optimizer": "adamw8bit", "useadam8bit": False}, "useadam8bit false has no effect with"),
        (
            {"optimizer": "schedule_free", "lr_scheduler": "cosine"},
            "meant to be used with constant",
        ),
        (
            {"optimizer": "prodigy", "lr": 1e-4},
            "lr 0.0001 is far from what is usual with optimizer",
        ),
        (
            {"optimizer": "prodigy", "text_encoder_lr": 5e-6},
            "text_encoder_lr 5e-06 is far from what is usual with optimizer",
        ),
        ({"optimizer": "lion", "lr": 1e-3}, "optimizer lion, 4e-07; leave it out to train at that"),
        ({"lora_rank": 64, "lr": 2e-6}, "lr 2e-06 is far from what is usual with a LoRA, 0.0001;"),
        ({"lora_rank": 64, "lr": 0.1}, "lr 0.1 is far from what is usual with a LoRA"),
        ({"lora_rank": 8, "text_encoder_lr": 1e-6}, "text_encoder_lr 1e-06 is far from what is"),
    ],
    ids=str,
)
def test_a_rate_or_schedule_that_is_meant_for_another_training_is_warned_of(
    asked: dict[str, Any], warning: str
) -> None:
    (found,) = warnings_of(**asked)

    assert warning in found


def test_the_usual_rate_of_a_lora_is_not_far_from_it_where_a_model_is_named_that_may_be_one() -> (
    None
):
    asked = {"optimizer": "adamw", "lr": 1e-4}

    assert len(list(warnings_of(**asked))) == 1
    assert not list(warnings_of(**asked, resume_ckpt_url="https://example.com/anna.safetensors"))


@pytest.mark.parametrize(
    "asked",
    [
        {"optimizer": "prodigy", "lr": 1},
        {"optimizer": "lion", "lora_rank": 8, "lr": 3e-5},
        {"optimizer": "adamw", "useadam8bit": False, "lr": 1e-6},
        {"lr": 0.5},
        {"lora_rank": 64, "lr": 3e-3},
        {"lora_rank": 64, "lr": 5e-5, "text_encoder_lr": 1e-5},
    ],
    ids=str,
)
def test_a_rate_that_suits_or_comes_without_optimizer_and_lora_is_not(
    asked: dict[str, Any],
) -> None:
    assert warnings_of(**asked) == []


# --- Texts without measure


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"{part * 50_000}{end}"
            for part in ("/", "\n", " ", "\\", "?", "@")
            for end in ("", "x")
        ),
        "x" + "\n" * 50_000 + "x",
        "//a?" * 12_500,
        "//a@" * 12_500,
        "http://" + "a." * 25_000,
        "http://[" + ":0" * 25_000 + "]/",
        "org/" + "a.b/" * 12_500,
        "-".join(["0" * 8] * 5_000),
        "\u3000" * 25_000 + "é" * 25_000,
    ],
    ids=lambda text: repr(text[:8] + text[-1]),
)
def test_no_text_takes_longer_than_its_length(text: str) -> None:
    """Nobody gets an answer meanwhile; each of these took seconds or hours at some time."""
    all_of = {kind: dict.fromkeys(kind.__struct_fields__, text) for kind in (Train, Inference)}
    bodies: list[Any] = [
        {
            "input": {"train": all_of[Train], "inference": all_of[Inference], text: text},
            "s3Config": dict.fromkeys(S3Config.__struct_fields__, text),
            "policy": dict.fromkeys(Policy.__struct_fields__, text),
            "webhook": text,
            "webhook_events_filter": [text],
        },
        {"input": {"model": text, "base": text, "loras": [text], "inference": [{"prompt": text}]}},
        {"input": {"train": {"data_url": URL, "validation": text, "sample_prompts": [text]}}},
        {"input": {"train": {"data_url": text, "resume_ckpt_url": text}}, "s3Config": text},
        text,
    ]
    begun = time.process_time()

    for body in bodies:
        with pytest.raises(Invalid):
            parse_request(body)

    assert time.process_time() - begun < 3.0
