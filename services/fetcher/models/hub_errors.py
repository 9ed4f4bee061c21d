"""Why a model was not fetched from the hub, in one short sentence with what to do.

Its library's own texts have hundreds of letters, with addresses and request ids.
"""

from __future__ import annotations

from collections.abc import Iterator

from httpx2 import HTTPError, TimeoutException
from huggingface_hub import errors

from services.fetcher.models.hub_order import MAIN_BRANCH, HubModel
from shared.child.records import Failed
from shared.errors import reason_of

SERVER_ERROR = 500
AWAY = (HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)


def failed(error: Exception, model: HubModel) -> Failed:
    """The child's last record."""
    refusal = _refusal(error, model)
    return Failed(refused=refusal is not None, reason=f"{model}: {refusal or _trouble(error)}")


def _refusal(error: Exception, model: HubModel) -> str | None:
    """Why it will never be fetched as it is named; None: a later try may succeed."""
    match error:
        case errors.GatedRepoError():
            return "access must be asked for on its page; use a model that is open to everybody"
        case errors.RevisionNotFoundError():
            return (
                f"no such revision as {model.revision or MAIN_BRANCH}; name a branch, tag or commit"
                " that its page lists"
            )
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            return "no such model, or a private one; compare its id with its page on the hub"
        case errors.DisabledRepoError():
            return "the hub has locked it; use another model"
    return None


def _trouble(error: Exception) -> str:
    every = [*_with_causes(error)]
    for each in every:
        if isinstance(each, errors.HfHubHTTPError) and each.response is not None:
            status = each.response.status_code
            again = "try again later" if status >= SERVER_ERROR else "try again in a few minutes"
            return f"the hub answers {status}; {again}"
    if any(isinstance(each, TimeoutException) for each in every):
        return "the hub does not answer in time; try again later"
    if isinstance(error, AWAY):
        return (
            "the hub cannot be reached, and the model is not on this machine; check the fetcher's"
            " network, its proxy, and HF_ENDPOINT if it is set"
        )
    return reason_of(error)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what has caused it, the nearest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
