import asyncio
import threading
import time

import pytest

from gr_jax.serving.http.batching import Batcher, Busy


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
