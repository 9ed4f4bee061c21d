"""What texts of a request may be, and what is wrong with the others, in words.

A text may be a secret, or hold one, or stand where another belongs: what is said of a text below
``s3Config`` never quotes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shared.network.addresses import has_credentials
from shared.request import (
    ACCESS_ID,
    ACCESS_SECRET,
    BUCKET,
    DEFAULT_BASE,
    ENDPOINT,
    JOB_ID,
    MODEL_NAME,
    OBJECT_PATH,
    is_http_url,
)

LONGEST_PATH, LONGEST_NAME = 700, 255
"""Bytes of an ``objectPath`` and of a name in it. A key has at most 1024, with the job's id and a
file's name."""


class Rule(NamedTuple):
    """A rule for a string."""

    holds: Callable[[str], bool]
    text: str
    """What is expected."""
    found: Callable[[str], str | None] = lambda _text: None
    """What is wrong with a text, without quoting it; None: nothing in particular."""


def is_endpoint(text: str) -> bool:
    """Whether the text is an http or https URL without a query."""
    return is_http_url(text, ENDPOINT)


def may_be_data(text: str) -> bool:
    """Whether the text is a URL, or a job's id."""
    return re.search(JOB_ID, text) is not None or is_http_url(text)


def may_be_a_model(text: str) -> bool:
    """Whether the text is a model's name or URL, but no path, and no key of our store."""
    return re.search(MODEL_NAME, text) is not None or is_http_url(text)


def fits_as_path(text: str) -> bool:
    """Whether keys can begin with the text, slashes at its ends aside."""
    path = text.strip("/")
    if len(path) > LONGEST_PATH:
        return False
    longest = max((len(name.encode()) for name in path.split("/")), default=0)
    fits = len(path.encode()) <= LONGEST_PATH and longest <= LONGEST_NAME
    return fits and re.search(OBJECT_PATH, text) is not None


def _credentials_in(text: str) -> str | None:
    return "one with a user name or password" if has_credentials(text) else None


def _ends_of(text: str) -> str | None:
    """What a text has at its ends or in it that a file or a clipboard has added."""
    ends = text[: len(text) - len(text.lstrip())] + text[len(text.rstrip()) :]
    if not {"\r", "\n"}.isdisjoint(ends):
        return "one with a line break at its end or start"
    if re.search(r"[\x00-\x1f\x7f]", text):
        return "one with a line break or another control character in it"
    if re.search(ACCESS_SECRET, text) is None:
        return "one with blanks at its ends"
    return None


def _in_id(text: str) -> str:
    return _ends_of(text) or "one with blanks or letters beyond ASCII in it"


def _in_bucket(text: str) -> str:
    if "://" in text:
        return "an address: leave out s3:// and the like"
    if "/" in text:
        return "a path: what comes after the bucket's name belongs into objectPath"
    if text.startswith("arn:"):
        return "an ARN"
    return _ends_of(text) or "one with other characters, or longer"


def _in_path(text: str) -> str:
    path = text.strip("/")
    if "//" in path:
        return "one with two slashes in a row"
    if len(path) <= LONGEST_PATH and {".", ".."} & {*path.split("/")}:
        return "one with . or .. as a name"
    return _ends_of(text) or "a longer one"


ADDRESS = Rule(is_http_url, "an http or https URL", _credentials_in)
MODEL = Rule(
    may_be_a_model,
    f"{DEFAULT_BASE}, the id of a job of yours, a hub id such as org/name, or an http or https"
    " URL of a hub page, a zipped diffusers folder, a .safetensors or a .ckpt file (paths are not"
    " read here)",
    _credentials_in,
)
RULES: Mapping[str, Rule] = {
    "data_url": Rule(
        may_be_data, "an http or https URL, or the id of a dataset check", _credentials_in
    ),
    "resume_ckpt_url": MODEL,
    "base": MODEL,
    "model": MODEL,
    "accessId": Rule(
        lambda text: re.search(ACCESS_ID, text) is not None,
        "an access id, in ASCII without blanks and line breaks",
        _in_id,
    ),
    "accessSecret": Rule(
        lambda text: re.search(ACCESS_SECRET, text) is not None,
        "a secret without blanks at its ends and without line breaks",
        _ends_of,
    ),
    "bucketName": Rule(
        lambda text: re.search(BUCKET, text) is not None,
        "the bucket's name alone: at most 255 of A-Z, a-z, 0-9, . _ and -, not . first",
        _in_bucket,
    ),
    "endpointUrl": Rule(is_endpoint, "an http or https URL without a query", _credentials_in),
    "objectPath": Rule(
        fits_as_path,
        f"names with one slash between them, at most {LONGEST_PATH} bytes and {LONGEST_NAME} each",
        _in_path,
    ),
}
"""By field name."""


def bucket_twice(values: Mapping[str, Any]) -> bool:
    """Whether the endpoint's path ends with the bucket, which would be there twice in each URL."""
    endpoint, bucket = values.get("endpointUrl"), values.get("bucketName")
    if not endpoint or not bucket:
        return False
    return str(urlsplit(endpoint).path).rstrip("/").endswith(f"/{bucket}")
