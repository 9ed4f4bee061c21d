"""Translate the errors of S3 services into ours."""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import (
    ClientError,
    EndpointProviderError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from shared.errors import (
    EveryDreamError,
    NotFound,
    Refused,
    Unavailable,
    not_for_users,
    shorten,
)
from shared.network.addresses import ADVICE as GUARD_ADVICE
from shared.network.addresses import shown_url
from shared.network.outbound import Blocked

MISSING = {"NoSuchKey", "NotFound", "404"}
"""A HEAD has no body, so its only code is the status."""
PASSING = {
    "BadDigest",
    "IncompleteBody",
    "NoSuchUpload",
    "OperationAborted",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "SlowDown",
}
PASSING_STATUS = {408, 409, 425, 429}
REDIRECTS = range(300, 400)
REGION = "x-amz-bucket-region"
"""The header by which Amazon's S3 says where a bucket is."""

ADVICE = {
    "403": "these keys may not do that",
    "AccessDenied": "these keys may not do that",
    "InvalidAccessKeyId": "the access id is not known there",
    "NoSuchBucket": "make the bucket, or correct its name or the endpoint",
    "SignatureDoesNotMatch": "the secret does not belong to the access id",
}

MISCONFIGURED = (
    EndpointProviderError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ValueError,
)


ODD = (LookupError, RuntimeError, ValueError)
"""What botocore and we raise over an answer that lacks a part, or has one that cannot be read."""


class OddAnswer(OSError):
    """The answer is none that an S3 service gives."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")


class AnswerTooLarge(OSError):
    """More came than any S3 service answers; an OSError, so that botocore does not retry it."""


class Redirected(OSError):
    """The service sends us elsewhere; an OSError, so that botocore neither follows nor retries."""

    def __init__(self, status: int, place: str) -> None:
        """``place`` is where it sends us, empty if it does not say."""
        super().__init__(_elsewhere(status, place))


@dataclass(frozen=True)
class Location:
    """A bucket, and the prefix in it that objects are kept under."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    user_owned: bool = False
    """Given by a user, who has to fix what is wrong with it."""

    def __str__(self) -> str:
        at = f" at {shown_url(self.endpoint)}" if self.endpoint else ""
        return f"bucket {self.bucket!r}{at}"


def translate(error: Exception, key: str, location: Location) -> EveryDreamError:
    """Our error for one of botocore, aiohttp or the operating system."""
    told = _translate(error, key, location)
    if isinstance(told, Unavailable) and not location.user_owned:
        return not_for_users(told)
    return told


def _translate(error: Exception, key: str, location: Location) -> EveryDreamError:
    lasting = Refused if location.user_owned else Unavailable
    if isinstance(error, Blocked):
        return lasting(f"{location}: the endpoint is a private address; {GUARD_ADVICE}")
    if isinstance(error, AnswerTooLarge):
        return lasting(f"{location} {error}")
    if isinstance(error, Redirected):
        return lasting(f"{location}: {error}")
    if isinstance(error, ClientError):
        return _from_response(error, key, location, lasting)
    if isinstance(error, MISCONFIGURED):
        return lasting(f"{location}: {_in_one_line(error)}")
    is_odd = isinstance(error, OddAnswer)
    fault = "gives an answer that cannot be understood" if is_odd else "does not answer"
    return Unavailable(f"{location} {fault}: {_in_one_line(error)}")


def _from_response(
    error: ClientError, key: str, location: Location, lasting: type[Refused | Unavailable]
) -> EveryDreamError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if code in MISSING:
        return NotFound(f"no object {key!r} in {location}")
    if status in REDIRECTS:
        region = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get(REGION)
        return lasting(
            f"{location}: {_elsewhere(status, f'the region {region}' if region else '')}"
        )
    advice = f" ({ADVICE[code]})" if code in ADVICE else ""
    text = f"{location}: {_in_one_line(error)}{advice}"
    passing = status >= 500 or status in PASSING_STATUS or code in PASSING  # noqa: PLR2004 - HTTP's
    return Unavailable(text) if passing else lasting(text)


def _elsewhere(status: int, place: str) -> str:
    at = f", in {place}" if place.startswith("the ") else f", at {place}" if place else ""
    return f"the bucket is elsewhere{at}: give its own endpoint (this one answers {status})"


def _in_one_line(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 1000) or type(error).__name__
