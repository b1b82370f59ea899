import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gr_jax
from gr_jax.serving.cache import CachedEncoder
from gr_jax.serving.retriever import Encoder

VISIBLE, EVENTS = 8, 14  # of the run: events that the model sees, events of a user


@functools.cache
def models(workdir: Path):
    """The run with a cache, and as it is without."""
    return gr_jax.load(workdir), gr_jax.load(workdir, cache_mb=0)


@pytest.fixture
def cached(retrieval):
    """The run with an empty cache."""
    model = models(retrieval)[0]
    model.answerer.encoder.cache.clear()
    return model


def read(model, user: int, first: int, events: int, wait: int = 0):
    log = model.history(f"u{user}")[first:events]
    return model.reader.history(log, user=f"u{user}", at_time=log[-1].time + wait)


CALL = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(3, EVENTS), st.integers(0, 10**6)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=8, deadline=None)
@given(calls=st.lists(CALL, min_size=1, max_size=5))
def test_whatever_was_asked_before_a_vector_is_that_of_a_whole_encode(retrieval, calls):
    model, plain = models(retrieval)
    assert isinstance(model.answerer.encoder, CachedEncoder) and isinstance(
        plain.answerer.encoder, Encoder
    )
    model.answerer.encoder.cache.clear()
    for call in calls:
        histories = [read(model, *asked) for asked in call]
        np.testing.assert_allclose(
            model.answerer.encoder(histories), plain.answerer.encoder(histories), atol=1e-5
        )


def test_new_events_are_appended_until_the_window_of_visible_events_moves(cached):
    def after(events: int, wait: int = 0) -> tuple[int, int, int]:
        before = cached.answerer.encoder.cache.counters
        cached.answerer.encoder([read(cached, 7, 0, events, wait)])
        now = cached.answerer.encoder.cache.counters
        return now.misses - before.misses, now.hits - before.hits, now.appended - before.appended

    assert after(4) == (1, 0, 0)
    assert after(4, wait=500) == (0, 1, 0)  # the same history at another time
    assert after(5) == (0, 1, 1)
    assert after(VISIBLE) == (0, 1, 3)
    assert after(VISIBLE + 1) == (1, 0, 0)  # positions and times count from another event
    assert after(VISIBLE + 1, wait=500) == (0, 1, 0)


def test_users_of_no_log_are_known_by_their_first_event(cached):
    log = [(event.item, event.time) for event in cached.history("u3")]
    for events in (3, 4, 5):
        cached.recommend(log[:events])
    cached.recommend(log[1:5])
    counters = cached.answerer.encoder.cache.counters
    assert counters.entries == 2
    assert cached.cache is cached.answerer.encoder.cache
