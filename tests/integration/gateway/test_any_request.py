"""The gateway answers any request as its OpenAPI document says."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from services.gateway.endpoints.uploads import CHUNK
from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.repository import JobRepository
from services.gateway.web.authorization import Authorizer
from services.gateway.web.rate_limits import RATES, Rate
from shared.messaging.messages import StageFailed, TrainingProgressed
from shared.messaging.topology import FETCHER, INFERENCER_RESULTS
from shared.request import JOB_ID
from tests.integration.gateway.test_checked_datasets import checked
from tests.support.gateway_world import API_KEY, REQUEST, Claimed, World, training, world

ROOT = "/v1/everydream-v1"
EXAMPLES, MANY_EXAMPLES = 2, 40
"""Of each operation, with valid data and again with invalid data."""
WAYS = 50
"""Operations with valid data, and with invalid data: there are more."""
LIFTED = dict.fromkeys(RATES, Rate(10**9, 1.0, 10**9))
SHORT_WAIT = 20
"""Milliseconds that a case waits at most."""
LAST = ("/cancel/{job}", "/purge-queue", "/jobs/{job}", "/uploads/{upload}")
"""Tested last, because they remove what the others need."""
ACCEPTED = ["2xx", "404", "409", "422"]
"""Statuses for valid data; a name in it may not exist, or mean something else."""
REFUSED = ["400", "401", "403", "404", "409", "411", "412", "415"]
"""Statuses for invalid data."""
DEPENDS = {
    *("/retry/{job}", "/events/{job}", "/jobs", "/jobs/{job}/dataset", "/files/{key}"),
    *("/uploads", "/uploads/{upload}"),
    *("/admin/workers", "/admin/dead-letters", "/admin/webhooks"),
}
"""Operations whose acceptance of valid data depends on more than the document says."""
ENDLESS = ("/events",)
"""Answers that a client must break off; tests of their own do."""
WEBHOOK = "https://example.com/hook"


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow thousands of requests with one key."""
    monkeypatch.setattr("services.gateway.app.Authorizer", authorizer)


def authorizer(repository: JobRepository, budgets: Budgets) -> Authorizer:
    return Authorizer(repository, budgets, LIFTED)


# --- Jobs of every kind -----------------------------------------------------------------------


async def at_work(here: World) -> Claimed:
    """The trainer of a job with some progress."""
    _, trainer = await training(here, REQUEST, webhook=WEBHOOK)
    await trainer.publish(TrainingProgressed, progress={"step": 3, "steps": 8, "loss": 0.25})
    await here.status_becomes(trainer.job, "IN_PROGRESS")
    return trainer


async def completed(here: World) -> str:
    trainer = await at_work(here)
    await trainer.finish_training()
    await here.get(INFERENCER_RESULTS)
    await (await here.claim(trainer.job, "generation")).finish_generation()
    await here.status_becomes(trainer.job, "COMPLETED")
    return str(trainer.job)


async def failed(here: World) -> str:
    trainer = await at_work(here)
    await trainer.publish(StageFailed, kind="refused", reason="the images are gone")
    await here.status_becomes(trainer.job, "FAILED")
    return str(trainer.job)


async def cancelled(here: World) -> str:
    job = await here.run()
    await here.get(FETCHER)
    await here.ask("POST", f"{ROOT}/cancel/{job}")
    return job


async def uploads(here: World) -> list[str]:
    """A complete one, and an incomplete one."""
    whole = await here.ask("POST", f"{ROOT}/uploads", data=b"a whole file")
    headers = {"Authorization": f"Bearer {API_KEY}", "Upload-Length": "100"}
    async with here.session.post(here.url(f"{ROOT}/uploads"), headers=headers) as begun:
        return [whole.body["id"], begun.headers["Location"].rpartition("/")[2]]


async def named(here: World) -> dict[str, list[str]]:
    """Existing values, by path parameter."""
    check = await checked(here)
    ended = [check, await completed(here), await failed(here), await cancelled(here)]
    webhooks = await here.ask("GET", f"{ROOT}/jobs/{ended[1]}/webhooks")
    return {
        "ended": ended,
        "check": [check],
        "trained": [ended[1]],
        "job": [*ended, (await at_work(here)).job, await here.run()],
        "webhook": [each["id"] for each in webhooks.body["deliveries"]],
        "upload": await uploads(here),
        "cursor": [(await here.ask("GET", f"{ROOT}/jobs?limit=1")).body["next"]],
    }


schemathesis.serializer.alias(CHUNK, "application/octet-stream")


@schemathesis.hook
def before_load_schema(_context: Any, schema: dict[str, Any]) -> None:
    """Leave out the examples, which name jobs of another story; tests of their own send them."""
    for path in schema["paths"].values():
        for operation in path.values():
            for described in operation if isinstance(operation, list) else [operation]:
                leave_out_examples(described)


def leave_out_examples(described: dict[str, Any]) -> None:
    content = described.get("requestBody", {}).get("content", {})
    for part in (described, *described.get("parameters", ()), *content.values()):
        part.pop("examples", None)


# --- Cases ------------------------------------------------------------------------------------


class Asker:
    """Sends requests, and checks every answer by the document."""

    def __init__(self, url: str, names: Mapping[str, list[str]], examples: int) -> None:
        self._schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        checks = self._schema.config.checks
        checks.positive_data_acceptance.expected_statuses = ACCEPTED
        checks.negative_data_rejection.expected_statuses = REFUSED
        self.answers: Counter[int] = Counter()
        self._names = names
        self._examples = examples
        self._session = requests.Session()

    def ask_everything(self) -> None:
        found = self._schema.get_all_operations()
        operations = [each.ok() for each in found if isinstance(each, Ok)]
        operations = [each for each in operations if each.path not in ENDLESS]
        for operation in sorted(operations, key=lambda each: each.path in LAST):
            self._ask(operation, GenerationMode.POSITIVE)
            if operation.body or list(operation.iter_parameters()):
                self._ask(operation, GenerationMode.NEGATIVE)

    def _ask(self, operation: Any, mode: GenerationMode) -> None:
        names = st.fixed_dictionaries({key: st.sampled_from(of) for key, of in self._names.items()})

        @settings(
            max_examples=self._examples, derandomize=True, deadline=None, database=None,
            phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode), names, st.integers(0, 3))
        def ask(case: Case[Any], known: Mapping[str, str], chance: int) -> None:
            if chance:
                name_what_there_is(case, known)
            refer_to_what_there_is(case, known)
            shorten(case)
            outside: list[Any] = (
                [positive_data_acceptance] if case.operation.path in DEPENDS else []
            )
            response = case.call_and_validate(
                session=self._session, headers=KEY, excluded_checks=outside
            )
            self.answers[response.status_code] += 1

        ask()


KEY = {"Authorization": f"Bearer {API_KEY}"}


def name_what_there_is(case: Case[Any], known: Mapping[str, str]) -> None:
    """Events are read from an ended job; those of a live one would not end."""
    events = case.operation.path == "/events/{job}"
    there = {**known, "job": known["ended"]} if events else known
    for parameters in (case.path_parameters, case.query):
        parameters.update({name: there[name] for name in parameters.keys() & there.keys()})


def refer_to_what_there_is(case: Case[Any], known: Mapping[str, str]) -> None:
    """In a body, the ids of jobs that have a dataset and a model, wherever an id stands."""
    body: Any = case.body
    if isinstance(body, dict) and "input" in body:
        inputs = body["input"] = referring(body["input"], known)
        if isinstance(inputs, dict) and isinstance(inputs.get("train"), dict):
            suit_one_another(inputs["train"])


def referring(value: Any, known: Mapping[str, str], field: str = "") -> Any:
    """A value, its ids replaced: under ``data_url`` by that of a check, elsewhere of a training."""
    if isinstance(value, dict):
        return {key: referring(each, known, key) for key, each in value.items()}
    if isinstance(value, list):
        return [referring(each, known, field) for each in value]
    if re.search(JOB_ID, str(value)):
        return known["check" if field == "data_url" else "trained"]
    return value


def suit_one_another(train: dict[str, Any]) -> None:
    """What JSON Schema cannot say of two values, each of which is allowed by itself."""
    start, end = train.get("timestep_start", -1), train.get("timestep_end", -1)
    if start in range(1000) and end in range(1, 1001) and start >= end:
        train |= {"timestep_start": 0, "timestep_end": 1000}
    if train.get("lora_rank") in range(1, 257) and train.get("checkpoint_format") == "ckpt":
        train["checkpoint_format"] = "safetensors"


def shorten(case: Case[Any]) -> None:
    if any(each.name == "wait" for each in case.operation.query):
        wait = str(case.query.get("wait", SHORT_WAIT + 1))
        if wait.isdecimal() and int(wait) > SHORT_WAIT:
            case.query["wait"] = SHORT_WAIT


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(MANY_EXAMPLES, marks=pytest.mark.long)]
)
async def test_no_request_gets_what_the_document_does_not_say(
    tmp_path: Path, examples: int
) -> None:
    async with world(tmp_path, max_unfinished_uploads=10**9) as here:
        asker = await asyncio.to_thread(Asker, here.url(""), await named(here), examples)

        await asyncio.to_thread(asker.ask_everything)

    assert asker.answers.total() >= WAYS * examples
    assert max(asker.answers) < 500
    assert asker.answers[429] == 0
