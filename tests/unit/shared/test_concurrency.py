"""Work in threads, and limited concurrency."""

import asyncio
import gc
import threading
import weakref

import pytest

from shared.concurrency import gather_limited, in_thread, uninterrupted

SECONDS = 30


async def test_work_in_a_thread_gives_its_result_or_its_error() -> None:
    assert await in_thread(int, "12", base=3) == 5
    with pytest.raises(ValueError, match="nonsense"):
        await in_thread(int, "nonsense")
    assert await in_thread(threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_waits_until_the_thread_is_done(*, fails: bool) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(SECONDS)
        ended.set()
        if fails:
            raise OSError

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, SECONDS)
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=0.05)
    assert not done

    go_on.set()
    await asyncio.wait((task,), timeout=SECONDS)
    assert ended.is_set()
    assert task.cancelled()


async def test_results_keep_their_order_and_no_more_than_asked_run_at_once() -> None:
    running, peaks = set(), set()

    async def work(number: int) -> int:
        running.add(number)
        peaks.add(len(running))
        await asyncio.sleep(0.001 * (10 - number))
        running.remove(number)
        return number * number

    assert await gather_limited(work, range(10), limit=3) == [n * n for n in range(10)]
    assert max(peaks) == 3


async def test_the_first_error_ends_the_rest_and_comes_as_it_is() -> None:
    begun, ended = [], []

    async def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise OSError("one")
        try:
            await asyncio.sleep(SECONDS)
        finally:
            ended.append(number)

    with pytest.raises(OSError, match="one"):
        await gather_limited(work, range(100), limit=2)
    assert {0, *ended} == {*begun} - {1}
    assert len(begun) < 10


async def test_work_that_must_end_is_not_cut_short_however_often_its_caller_is_cancelled() -> None:
    begun, go_on, steps = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        begun.set()
        await go_on.wait()
        steps.append("ended")

    task = asyncio.create_task(uninterrupted(work()))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        done, _others = await asyncio.wait((task,), timeout=0.01)
        assert not done
    go_on.set()
    await asyncio.wait((task,), timeout=SECONDS)
    assert task.cancelled()
    assert steps == ["ended"]


async def test_the_error_of_work_that_must_end_is_its_caller_s() -> None:
    async def work() -> None:
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        await uninterrupted(work())


async def test_a_cancelled_wait_keeps_nothing_of_its_callers_in_memory() -> None:
    class Large:
        pass

    async def caller(begun: asyncio.Event) -> None:
        large = Large()
        there.append(weakref.ref(large))
        begun.set()
        await uninterrupted(asyncio.sleep(0))

    there: list[weakref.ref[Large]] = []
    begun = asyncio.Event()
    task = asyncio.create_task(caller(begun))
    await begun.wait()
    gc.disable()
    try:
        task.cancel()
        await asyncio.wait((task,), timeout=SECONDS)
        assert task.cancelled()
        del task
        assert there[0]() is None
    finally:
        gc.enable()
