"""What ``everydream run`` requests, and with which key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everydream.run import Access, JobSpec, access
from services.gateway.web.authentication import first_key
from shared.errors import Refused
from shared.settings import Settings, from_environment

URL = "https://example.com/photos.zip"


def settings_in(home: Path) -> Settings:
    return from_environment({"EVERYDREAM_HOME": str(home)})


def job_spec(tmp_path: Path, config: Any = None, **more: Any) -> JobSpec:
    if config is None:
        return JobSpec("photos", **more)
    (tmp_path / "job.json").write_text(json.dumps(config))
    return JobSpec("photos", tmp_path / "job.json", **more)


def test_a_bare_folder_is_trained_by_the_endpoint_s_defaults(tmp_path: Path) -> None:
    assert job_spec(tmp_path).request(URL) == {
        "input": {"train": {"data_url": URL}, "inference": []}
    }


def test_prompts_and_fields_are_added(tmp_path: Path) -> None:
    changes = ("max_epochs=10", "lr=1e-6", "amp=false", "lr_scheduler=cosine", "validation={}",
               'sample_prompts=["a, b"]', "hf_repo_subfolder=a=b")  # fmt: skip

    request = job_spec(tmp_path, changes=changes, prompts=("one", "two")).request(URL)

    assert request["input"]["train"] == {
        "max_epochs": 10, "lr": 1e-6, "amp": False, "lr_scheduler": "cosine", "validation": {},
        "sample_prompts": ["a, b"], "hf_repo_subfolder": "a=b", "data_url": URL,
    }  # fmt: skip
    assert request["input"]["inference"] == [{"prompt": "one"}, {"prompt": "two"}]


@pytest.mark.parametrize("inference", [{"prompt": "one"}, [{"prompt": "one"}]])
def test_a_file_may_hold_a_whole_input(tmp_path: Path, inference: Any) -> None:
    config = {"train": {"lr": 1e-6, "data_url": "mine"}, "inference": inference}

    request = job_spec(tmp_path, config, changes=("lr=2e-6",), prompts=("two",)).request(URL)

    assert request["input"] == {
        "train": {"lr": 2e-6, "data_url": URL},
        "inference": [{"prompt": "one"}, {"prompt": "two"}],
    }


def test_a_file_may_hold_the_fields_of_train_alone(tmp_path: Path) -> None:
    request = job_spec(tmp_path, {"lr": 1e-6}).request(URL)

    assert request["input"]["train"] == {"lr": 1e-6, "data_url": URL}


@pytest.mark.parametrize("config", [[1], "text", {"train": 5}])
def test_a_file_that_holds_something_else_is_reported(tmp_path: Path, config: Any) -> None:
    with pytest.raises(Refused, match=r"job\.json: expected an object: a whole input, or its"):
        job_spec(tmp_path, config).request(URL)


def test_so_is_one_that_is_not_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")

    for name in ("bad.json", "none.json"):
        with pytest.raises(Refused, match=name):
            JobSpec("photos", tmp_path / name).request(URL)


@pytest.mark.parametrize("change", ["lr", "=5", ""])
def test_a_change_without_a_name_or_a_value_is_reported(tmp_path: Path, change: str) -> None:
    with pytest.raises(Refused, match="expected name=value"):
        job_spec(tmp_path, changes=(change,)).request(URL)


def test_the_key_of_the_first_start_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_key(tmp_path, "https://train.example.com")
    key = capsys.readouterr().out.split()[-1]

    assert access(None, None, settings_in(tmp_path)) == Access("https://train.example.com", key)


def test_a_key_that_is_given_counts(tmp_path: Path) -> None:
    first_key(tmp_path, "https://train.example.com")

    given = access("https://other.example.com/", "k", settings_in(tmp_path))
    usual = access(None, "k", settings_in(tmp_path))

    assert given == Access("https://other.example.com", "k")
    assert usual == Access("http://127.0.0.1:8080", "k")


def test_the_key_at_home_is_sent_to_no_other_gateway(tmp_path: Path) -> None:
    first_key(tmp_path, "https://train.example.com")

    with pytest.raises(Refused, match="no key: give --key or EVERYDREAM_API_KEY"):
        access("https://other.example.com", None, settings_in(tmp_path))


def test_without_any_key_the_error_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no key: give --key or EVERYDREAM_API_KEY"):
        access(None, None, settings_in(tmp_path))
