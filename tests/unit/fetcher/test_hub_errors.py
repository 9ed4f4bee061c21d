"""What a person is told when the hub gives no model."""

from __future__ import annotations

import pytest
from httpx2 import ConnectError, ReadTimeout, Request, Response
from huggingface_hub import errors

from services.fetcher.models.hub_errors import failed
from services.fetcher.models.hub_order import HubModel

MODEL = HubModel(repository="org/model", revision="v9")
LONG = "An error happened while trying to locate the files on the Hub. " * 8
URL = "https://huggingface.co/api/models/org/model?secret=x"


def answer(status: int) -> Response:
    return Response(status, request=Request("GET", URL))


def caused_by(cause: Exception) -> Exception:
    error = errors.LocalEntryNotFoundError(LONG)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "refused", "said"),
    [
        (
            errors.GatedRepoError(LONG, response=answer(403)),
            True,
            "access must be asked for on its page",
        ),
        (errors.RepositoryNotFoundError(LONG, response=answer(401)), True, "no such model, or"),
        (errors.HFValidationError(LONG), True, "no such model, or a private one; compare its id"),
        (errors.RevisionNotFoundError(LONG, response=answer(404)), True, "no such revision as v9"),
        (errors.DisabledRepoError(LONG, response=answer(403)), True, "the hub has locked it"),
        (errors.HfHubHTTPError(LONG, response=answer(503)), False, "the hub answers 503; try"),
        (caused_by(errors.HfHubHTTPError(LONG, response=answer(429))), False, "answers 429; try"),
        (caused_by(ReadTimeout(LONG)), False, "the hub does not answer in time"),
        (caused_by(ConnectError(LONG)), False, "the hub cannot be reached, and the model is not"),
        (errors.OfflineModeIsEnabled(LONG), False, "the hub cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_one_short_sentence_with_what_to_do(
    error: Exception, said: str, *, refused: bool
) -> None:
    record = failed(error, MODEL)

    assert record.refused is refused
    assert record.reason.startswith("org/model@v9 on the hub: ")
    assert said in record.reason
    assert ";" in record.reason
    assert len(record.reason) < 200
    assert "secret" not in record.reason
