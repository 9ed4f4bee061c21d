"""What counts as a lost connection, and when a task is really cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from shared.adapters.rabbitmq_connection import ConnectionLost, translate_errors


async def forgetful(answer: asyncio.Event) -> None:
    """Waits like a library that loses a cancel when an answer has arrived."""
    with suppress(asyncio.CancelledError):
        await answer.wait()


async def test_an_error_and_silence_and_a_cancel_that_nobody_asked_for_mean_lost() -> None:
    for error in (ConnectionResetError(), asyncio.CancelledError()):
        with pytest.raises(ConnectionLost):
            async with translate_errors(None):
                raise error
    with pytest.raises(ConnectionLost):
        async with translate_errors(0.001):
            await asyncio.Event().wait()


async def test_a_cancel_that_the_library_forgot_ends_the_task_all_the_same() -> None:
    reached = []

    async def work() -> None:
        async with translate_errors(None):
            await forgetful(asyncio.Event())
        reached.append("the next step")

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait([working])

    assert working.cancelled()
    assert not reached


async def test_a_cancel_that_the_library_turned_into_an_error_ends_the_task_all_the_same() -> None:
    async def work() -> None:
        async with translate_errors(None):
            await forgetful(asyncio.Event())
            raise ConnectionResetError

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait([working])

    assert working.cancelled()
