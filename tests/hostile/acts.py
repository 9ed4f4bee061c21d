"""All that the rude key does, each as a function that does it once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from time import monotonic

import aiohttp
from yarl import URL

from tests.hostile.client import ENDPOINT, NOTHING, Caller
from tests.hostile.direct import forge_events
from tests.hostile.materials import DEEP, echoing, training

RUN, RUNSYNC, LARGEST = 9_800_000, 17_500_000, 20 << 20
"""Bytes of bodies; RunPod's limits, which are ours, are 10 and 20 MiB."""
HALF_SENT = 300
"""Connections with the beginning of a head."""
NO_TEXT = "\udcff\udced\udca0\udc80"
"""Bytes that are no UTF-8."""
WAVE_SECONDS, SUBMITTERS = 10.0, 8
TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
SIBLING = "200 with the file beside it"


@dataclass(frozen=True)
class Act:
    name: str
    do: Callable[[Caller], Awaitable[None]]
    at_once: int = 1


async def bomb_tokenizer(caller: Caller) -> None:
    body = training(caller.stock.bomb_dataset, resume_ckpt_url=caller.stock.bomb)
    path = caller.random.choice(("/run", "/dataset/check"))
    await caller.submit_and_cancel(body, within=(5, 20), path=path)


async def send_large_bodies(caller: Caller) -> None:
    """Each job is deleted again, so that the budget of kept bytes does not end it."""
    if job := await caller.submit(large(caller.stock.small, RUN)):
        await caller.ask("GET", f"/status/{job}")
        await remove(caller, job)


async def wait_with_large_bodies(caller: Caller) -> None:
    if job := await caller.submit(large(caller.stock.small, RUNSYNC), "/runsync?wait=2000"):
        await remove(caller, job)


async def decode_slow_pictures(caller: Caller) -> None:
    await caller.submit_and_cancel(training(caller.stock.slow_pictures), within=(0.5, 8))


async def cancel_trainings(caller: Caller) -> None:
    await caller.submit_and_cancel(training(caller.stock.small, max_epochs=200), within=(0, 10))


async def answer_without_end(caller: Caller) -> None:
    bucket = {"accessId": "a", "accessSecret": "s", "bucketName": "b"}
    body = {"s3Config": {**bucket, "endpointUrl": caller.stock.endless_bucket}}
    await caller.submit_and_cancel(training(caller.stock.small) | body, within=(5, 20))


async def drip_data(caller: Caller) -> None:
    await caller.submit_and_cancel(training(caller.stock.dripping), within=(10, 30))


async def hold_bodies(caller: Caller) -> None:
    head = caller.head(f"POST {ENDPOINT}/runsync", f"Content-Length: {LARGEST}")
    await caller.send(head, zeros(LARGEST - (1 << 20)), seconds=90)


async def upload_by_the_byte(caller: Caller) -> None:
    headers = TUS | {"Upload-Length": "1000000"}
    status, answer = await caller.ask("POST", "/uploads", headers=headers)
    if status != "201":
        return
    upload = json.loads(answer)["id"]
    for _ in range(20):
        await caller.ask(
            "PATCH", f"/uploads/{upload}", headers=TUS | {"Upload-Offset": "0"}, data=b"x"
        )
    chunked = TUS | {"Upload-Offset": "0", "Transfer-Encoding": "chunked"}
    lines = (f"{name}: {value}" for name, value in chunked.items())
    head = caller.head(f"PATCH {ENDPOINT}/uploads/{upload}", *lines)
    await caller.send(head, b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n", seconds=60)
    await caller.ask("DELETE", f"/uploads/{upload}")


async def send_odd_keys(caller: Caller) -> None:
    body = json.dumps(training(caller.stock.small)).encode()
    lines = (f"Content-Length: {len(body)}", f"Idempotency-Key: {NO_TEXT}")
    await caller.send(caller.head(f"POST {ENDPOINT}/run", *lines), body, seconds=30)


async def send_half_heads(caller: Caller) -> None:
    half = caller.head(f"POST {ENDPOINT}/run")[:-2]
    await asyncio.gather(*(caller.send(half, seconds=90) for _ in range(HALF_SENT)))


async def ask_for_siblings(caller: Caller) -> None:
    """Links are opened as they are, by programs that would take a compressed file as well."""
    for link in caller.target.links:
        path, query = link.split("?")
        for url in (link, f"{path}.gz?{query}", f"{path}.gz"):
            await open_link(caller, url)


async def open_link(caller: Caller, url: str) -> None:
    try:
        headers = {"Accept-Encoding": "gzip"}
        async with caller.session.get(URL(url, encoded=True), headers=headers) as answer:
            body = await answer.read()
            is_sibling = answer.status == 200 and caller.target.sibling.encode() in body
            status = SIBLING if is_sibling else str(answer.status)
    except (aiohttp.ClientError, OSError, TimeoutError):
        status = NOTHING
    caller.answers[status] += 1


async def name_silent_webhooks(caller: Caller) -> None:
    """The jobs fail soon, and what is told of them is never answered."""
    webhook = {"webhook": caller.stock.silent_webhook}
    await caller.submit(training(caller.stock.missing) | webhook)
    await asyncio.sleep(0.5)


async def nest_deeply(caller: Caller) -> None:
    await caller.ask("POST", "/runsync", data=caller.random.choice([*DEEP.values()]))


async def flood(caller: Caller) -> None:
    """As many small jobs as it may have, in the end for good.

    They stand in the line of its own key, where they keep the jobs of its other acts waiting: so
    at first they come in waves.
    """
    await asyncio.gather(*(submit_many(caller, WAVE_SECONDS) for _ in range(SUBMITTERS)))
    if monotonic() - caller.began < caller.target.seconds / 2:
        await caller.ask("POST", "/purge-queue")
        await asyncio.sleep(WAVE_SECONDS)


async def submit_many(caller: Caller, seconds: float) -> None:
    end = monotonic() + seconds
    while monotonic() < end:
        await caller.submit(training(caller.stock.small))


async def remove(caller: Caller, job: str) -> None:
    await caller.ask("POST", f"/cancel/{job}")
    await caller.ask("DELETE", f"/jobs/{job}")


@cache
def large(data_url: str, size: int) -> bytes:
    return echoing(data_url, size)


@cache
def zeros(size: int) -> bytes:
    return bytes(size)


ACTS = (
    Act("tokenizers that are bombs", bomb_tokenizer, 2),
    Act("bodies of 9.8 MB to `/run`", send_large_bodies, 4),
    Act("bodies of 17.5 MB to `/runsync`", wait_with_large_bodies, 2),
    Act("pictures that are slow to decode, cancelled", decode_slow_pictures, 4),
    Act("trainings cancelled at random moments", cancel_trainings, 3),
    Act("buckets that answer without end", answer_without_end, 2),
    Act("data that drips", drip_data, 8),
    Act("another's events and reply queue over AMQP", forge_events),
    Act("bodies of 20 MB that stop at 19", hold_bodies, 12),
    Act("uploads by the byte", upload_by_the_byte, 2),
    Act("idempotency keys that are no text", send_odd_keys),
    Act("half-sent heads", send_half_heads),
    Act("signed links with `.gz` files beside them", ask_for_siblings),
    Act("webhooks that never answer", name_silent_webhooks, 2),
    Act("deep and broad JSON", nest_deeply, 2),
    Act("a flood of small jobs", flood),
)
