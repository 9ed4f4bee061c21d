"""One real job as a trace: whether it is whole, and what it looks like in docs/tracing.md.

``TRACING_PAGE=docs/tracing.md`` in the environment has the page written anew.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.end_to_end.story import API_KEY, User
from tests.support.measured_page import today, write
from tests.support.servers.otlp import Collected, Collector
from tests.support.servers.web import Seen

PAGE, PART = "TRACING_PAGE", "a job"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVICES = {f"everydream-{name}" for name in
            ("gateway", "fetcher", "trainer", "inferencer", "notifier")}  # fmt: skip
STAGES = ("bucket_check", "staging", "training", "generation", "model_publication",
          "image_publication")  # fmt: skip
WITH_CHILD = ("staging", "training", "generation")


def exporting_to(collector: str) -> dict[str, str]:
    """The environment of a service that exports its spans, soon; of none without an address."""
    if not collector:
        return {}
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "200"}


async def run_traced(url: str, user: User, request: dict[str, Any]) -> str:
    """Submit a job as a part of a trace of the client's own."""
    async with user.session.post(
        f"{url}/v1/everydream-v1/run",
        json=request,
        headers={
            "Authorization": f"Bearer {API_KEY}",
            "traceparent": f"00-{TRACE}-{CALLER}-01",
        },
        raise_for_status=True,
    ) as answer:
        assert answer.headers["traceparent"].split("-")[1] == TRACE
        return str((await answer.json())["id"])


async def see_one_trace(collector: Collector, job: str, webhook: Seen) -> None:
    """The job is one trace, from the client's span to the webhook, over all services."""
    _, trace, posted, _ = webhook.headers["traceparent"].split("-")
    assert trace == TRACE
    spans = await collector.wait_for(lambda spans: posted in ids(spans) and not orphans(spans))
    spans = [each for each in spans if each.trace == TRACE]
    by_id = {each.id: each for each in spans}
    assert [each.name for each in orphans(spans)] == []
    root = one(spans, "POST /v1/everydream-v1/run")
    assert root.parent == CALLER
    assert {each.service for each in spans} == SERVICES
    assert [each.name for each in spans if each.failed] == []
    assert {each.attributes["everydream.job"] for each in spans if
            "everydream.job" in each.attributes} == {job}  # fmt: skip

    for name in STAGES:
        stage = one(spans, f"stage {name}")
        assert stage.parent == root.id, name
        (cause,) = (by_id[link] for link in stage.links)
        assert cause.begun < stage.begun, name
    assert by_id[one(spans, "stage training").links[0]].name == "stage staging"
    assert by_id[one(spans, "stage generation").links[0]].name == "stage training"
    parents_of_children = {each.parent for each in spans if each.name == "child"}
    assert {one(spans, f"stage {name}").id for name in WITH_CHILD} <= parents_of_children
    assert by_id[by_id[posted].parent].name == "publish webhook.due"
    if page := os.environ.get(PAGE):
        write(PART, f"{today()}\n\n```\n{drawn(spans, root)}\n```", Path(page))


def ids(spans: list[Collected]) -> set[str]:
    return {each.id for each in spans}


def orphans(spans: list[Collected]) -> list[Collected]:
    """Those whose parent, or cause, is not there: not yet, or never."""
    known = {*ids(spans), CALLER}
    return [
        each
        for each in spans
        if each.trace == TRACE and not known.issuperset({each.parent, *each.links})
    ]


def one(spans: list[Collected], name: str) -> Collected:
    (found,) = (each for each in spans if each.name == name)
    return found


def drawn(spans: list[Collected], root: Collected) -> str:
    """The tree, in the order of time: when each began, how long it took, its name and service."""
    below = defaultdict(list)
    for span in sorted(spans, key=lambda each: each.begun):
        below[span.parent].append(span)
    names = {each.id: each.name for each in spans}

    def lines(span: Collected, depth: int) -> Iterator[str]:
        service = span.service.removeprefix("everydream-")
        linked = "".join(f"  <- {names[link]}" for link in span.links if link in names)
        began = f"{span.begun - root.begun:8.3f} {span.seconds:8.3f}"
        yield f"{began}  {'  ' * depth}{span.name} [{service}]{linked}"
        for child in below[span.id]:
            yield from lines(child, depth + 1)

    return "\n".join([f"{'began':>8} {'seconds':>8}", *lines(root, 0)])
