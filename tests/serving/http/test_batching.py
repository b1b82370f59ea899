import asyncio
import threading
import time

import pytest

from gr_jax.serving.http.batching import Batcher
from gr_jax.serving.http.limits import Busy


def run(test):
    """Runs an async function to its end."""
    return asyncio.run(asyncio.wait_for(test(), 20))


def test_requests_that_wait_together_are_computed_together_and_answered_each():
    sizes, gate = [], threading.Event()

    def answer(requests: list) -> list:
        gate.wait(10)
        return [request * 10 for request in requests]

    async def test():
        batcher = Batcher(answer, max_size=4, wait=0.001, room=100, observe=sizes.append)
        batcher.start()
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.sleep(0.05)  # the worker has it, and waits
        rest = [asyncio.create_task(batcher.ask(i)) for i in range(1, 10)]
        await asyncio.sleep(0.05)
        gate.set()
        assert await asyncio.gather(first, *rest) == [10 * i for i in range(10)]
        await batcher.close()

    run(test)
    assert sizes == [1, 4, 4, 1]


def test_a_lone_request_waits_no_longer_than_the_bound():
    async def test():
        batcher = Batcher(lambda requests: requests, max_size=8, wait=0.05, room=100)
        batcher.start()
        start = time.monotonic()
        assert await batcher.ask("alone") == "alone"
        waited = time.monotonic() - start
        await batcher.close()
        return waited

    assert 0.04 < run(test) < 10  # the wait itself; no upper bound is safe on a busy machine


def test_a_full_batch_does_not_wait():
    async def test():
        batcher = Batcher(lambda requests: requests, max_size=2, wait=1000.0, room=100)
        batcher.start()
        assert await asyncio.gather(batcher.ask(1), batcher.ask(2)) == [1, 2]
        await batcher.close()

    run(test)


def test_a_full_queue_and_a_closed_batcher_refuse():
    async def test():
        batcher = Batcher(lambda requests: requests, max_size=9, wait=1000.0, room=1)
        batcher.start()
        waiting = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="1 requests are waiting"):
            await batcher.ask(2)
        await batcher.close()
        assert await waiting == 1, "what waits at the end is answered"
        with pytest.raises(Busy, match="shutting down"):
            await batcher.ask(3)

    run(test)


def learned(seconds: float, **settings) -> Batcher:
    """A batcher that knows how long a unit of work takes."""
    batcher = Batcher(lambda requests: requests, max_size=9, wait=1000.0, room=99, **settings)
    batcher._seconds_of_unit = seconds
    return batcher


def test_work_beyond_the_room_is_refused_with_the_time_until_there_is_some():
    async def test():
        batcher = learned(0.001, room_seconds=1.0)
        batcher.start()
        tasks = [asyncio.create_task(batcher.ask(1, 5000.0))]  # alone, it may be of any size
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="5.0 s of work are waiting") as caught:
            await batcher.ask(2, 1.0)
        assert caught.value.retry_after == 6
        await batcher.close()
        assert await asyncio.gather(*tasks) == [1]

        batcher = learned(0.001, room_seconds=1.0)
        batcher.start()
        tasks = [asyncio.create_task(batcher.ask(i, 300.0)) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batcher.ask(3, 300.0)
        tasks += [asyncio.create_task(batcher.ask(4, 20.0)) for _ in range(9)]  # small ones still
        await asyncio.sleep(0)
        await batcher.close()
        assert await asyncio.gather(*tasks) == [0, 1, 2, *[4] * 9]

    run(test)


def test_small_requests_are_computed_before_large_ones_that_came_a_little_earlier():
    batches = []

    async def test():
        batcher = learned(0.001)
        batcher._answer = lambda requests: batches.append(requests) or requests
        work = {"large": 800.0, "other": 700.0, "small": 1.0, "tiny": 0.5}
        tasks = [asyncio.create_task(batcher.ask(name, size)) for name, size in work.items()]
        await asyncio.sleep(0)
        batcher.start()
        await batcher.close()
        await asyncio.gather(*tasks)

    run(test)
    assert batches[0] in (["small", "tiny"], ["tiny", "small"])
    assert batches[1:] == [["other"], ["large"]], "each alone: a batch takes about 0.1 s"


def test_how_long_work_takes_is_learned():
    async def test():
        batcher = Batcher(
            lambda requests: time.sleep(0.2) or requests, max_size=1, wait=0.0, room=9
        )
        batcher.start()
        await batcher.ask(1, 10_000.0)
        await batcher.close()
        return batcher._seconds_of_unit

    assert run(test) > 1e-5


def test_an_error_reaches_those_who_asked_and_the_next_batch_works():
    def answer(requests: list) -> list:
        if "bad" in requests:
            raise RuntimeError("broken")
        return requests

    async def test():
        batcher = Batcher(answer, max_size=1, wait=0.0, room=9)
        batcher.start()
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.ask("bad")
        assert await batcher.ask("good") == "good"
        await batcher.close()

    run(test)


def test_a_client_that_has_gone_is_not_computed():
    seen = []

    async def test():
        batcher = Batcher(
            lambda requests: seen.extend(requests) or requests, max_size=9, wait=0.05, room=9
        )
        batcher.start()
        gone = asyncio.create_task(batcher.ask("gone"))
        there = asyncio.create_task(batcher.ask("there"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await there == "there"
        await batcher.close()

    run(test)
    assert seen == ["there"]
