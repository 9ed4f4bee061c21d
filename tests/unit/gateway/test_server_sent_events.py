"""The format of an event, and the id that a client resumes from."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from services.gateway.endpoints.server_sent_events import BEGINNING, LAST_NUMBER, event, position_of
from services.gateway.jobs.repository import JobVersion
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.transitions import admit
from shared.request import ModelSource, Request

JOB = admit(
    "a", "owner", Request(model=ModelSource(source="org/name")), {}, sealed=None, now=0.0
).job
FIFTH = JobVersion(JOB, 5)


def test_an_event_is_three_lines_and_an_empty_one_whatever_its_data_holds() -> None:
    told = event("12.3", "sample", {"prompt": "one\ntwo\r\nthree\u2028 ein Fuß"})

    *lines, empty, rest = told.decode().split("\n")
    assert lines == [
        "id: 12.3",
        "event: sample",
        'data: {"prompt":"one\\ntwo\\r\\nthree\u2028 ein Fuß"}',
    ]
    assert (empty, rest) == ("", "")


def test_without_an_id_the_client_begins_at_the_beginning() -> None:
    assert position_of(make_mocked_request("GET", "/events/a"), FIFTH) == BEGINNING


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("5.2", (5, 2, 0)),
        ("5", (5, LAST_NUMBER, 0)),
        ("0", (0, LAST_NUMBER, 0)),
        ("5-12", (5, LAST_NUMBER, 12)),
    ],
)
def test_an_id_says_what_was_read_and_the_header_knows_better_than_the_address(
    text: str, place: tuple[int, int, int]
) -> None:
    in_address = make_mocked_request("GET", f"/events/a?last_event_id={text}")
    assert position_of(in_address, FIFTH) == place
    headers = {"Last-Event-ID": text}
    both = make_mocked_request("GET", "/events/a?last_event_id=1.0", headers=headers)
    assert position_of(both, FIFTH) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "5.",
        "5-",
        ".5",
        "-1",
        "1.2.3",
        "1.2-3",
        "5.0 ",
        "²",
        "1" * 10,
        "6",
        "6.0",
        "6-1",
    ],
)
def test_what_is_no_id_of_this_job_is_refused(text: str) -> None:
    request = make_mocked_request("GET", "/events/a", headers={"Last-Event-ID": text})

    with pytest.raises(Invalid, match="expected the id of an event of this job"):
        position_of(request, FIFTH)


def test_a_wrong_id_is_reported_even_beside_a_valid_one() -> None:
    headers = {"Last-Event-ID": "1.0"}
    request = make_mocked_request("GET", "/events/a?last_event_id=x&last_id=1", headers=headers)

    with pytest.raises(Invalid) as caught:
        position_of(request, FIFTH)
    assert caught.value.mistakes == [
        "last_id: no such parameter; did you mean last_event_id?",
        "last_event_id: expected the id of an event of this job, got 'x'",
    ]
