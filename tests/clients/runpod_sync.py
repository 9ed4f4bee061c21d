"""A user of the `runpod` package, by its plain API: every method, and what came of it as JSON.

Run by the clients' own interpreter, with the base URL, a key, and the requests as JSON.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import requests
import runpod

base, key, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
runpod.endpoint_url_base = base
runpod.api_key = key
endpoint = runpod.Endpoint("everydream-v1")


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, requests.HTTPError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{call} went well")


def cut_short(endless: Any, chunks: Iterator[Any]) -> dict[str, Any]:
    """One job is cancelled while it trains, another while it waits behind it."""
    first = next(chunk for chunk in chunks if chunk["step"])
    waiting = endpoint.run(asked["small"]["input"])
    return {
        "first": first,
        "health": endpoint.health(),
        "purged": endpoint.purge_queue(),
        "waiting": waiting.status(),
        "cancelled": endless.cancel(),
        "status": endless.status(),
    }


def failed() -> dict[str, Any]:
    job = endpoint.run(asked["failing"])
    return {"output": job.output(timeout=60), "status": job.status()}


def completed() -> dict[str, Any]:
    """A job's whole stream, and its model put to use again."""
    job = endpoint.run(asked["small"])
    return {
        "streamed": list(job.stream()),
        "status": job.status(),
        "output": job.output(timeout=60),
        "run_sync": endpoint.run_sync({"model": job.job_id, **asked["again"]}),
    }


def refused() -> dict[str, Any]:
    return {
        "wrong key": error_of(runpod.Endpoint("everydream-v1", "wrong").health),
        "mistake": error_of(lambda: endpoint.run({"input": {"train": {}}})),
    }


endless = endpoint.run(asked["endless"])
chunks = endless.stream()
told = {
    "cut short": cut_short(endless, chunks),
    "failed": failed(),
    "completed": completed(),
    "refused": refused(),
    # Last, for this one ends only when it is no longer found.
    "rest of the stream": error_of(lambda: list(chunks)),
}
sys.stdout.write(json.dumps(told))
