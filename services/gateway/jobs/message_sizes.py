"""How large a job's messages will be, so that no job is admitted whose messages no broker takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from services.gateway.jobs.record import Step
from shared.messaging.messages import encode, type_of
from shared.messaging.topology import MAX_MESSAGE_BYTES
from shared.request import Request

FACT_BYTES = 256 * 1024
"""What a fact says at most besides the request's words and images, such as a dataset's report."""
IMAGE_BYTES = 500
"""What a fact says of an image besides its entry in the request: its file, size and digest."""
SHOWN_IMAGE_BYTES = 1600
"""The same in the body of a webhook, which has its link twice, as JSON in JSON."""


def why_unpublishable(step: Step, request: Request) -> str | None:
    """Which message of a new job would be too large, for its owner; None: none.

    Live samples are not counted: their number is known only while the job runs.
    """
    kind, size = max(_sizes(step, request).items(), key=lambda each: each[1])
    if size <= MAX_MESSAGE_BYTES:
        return None
    return (
        f"the request is too large: the job's message {kind} would have {size} bytes, but the"
        f" broker takes {MAX_MESSAGE_BYTES}; ask for fewer images, or use shorter texts"
    )


def _sizes(step: Step, request: Request) -> dict[str, int]:
    """Bytes by type of message."""
    caused = {type_of(each.message): len(encode(each.message)) for each in step.effects}
    sizes = {
        **caused,
        "dataset.staged": caused["job.submitted"] + FACT_BYTES,
        "images.generated": _images(request, _length, IMAGE_BYTES) + FACT_BYTES,
        "claim.granted": len(step.job.s3 or "") + FACT_BYTES,
    }
    if request.webhook:
        shown = _images(request, _quoted_length, SHOWN_IMAGE_BYTES)
        said = _quoted_length(step.job.input) + len(request.webhook)
        sizes["webhook.due"] = said + shown + FACT_BYTES
    return sizes


def _images(request: Request, length: Callable[[Any], int], each_image: int) -> int:
    """Of all images and of one row of samples."""
    prompts = request.train.sample_prompts if request.train else ()
    images = sum(each.num_outputs * (length(each) + each_image) for each in request.inference)
    return images + sum(length(prompt) + each_image for prompt in prompts)


def _length(value: Any) -> int:
    return len(msgspec.json.encode(value))


def _quoted_length(value: Any) -> int:
    """As JSON inside of a JSON string."""
    return _length(msgspec.json.encode(value).decode())
