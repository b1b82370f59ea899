"""Token streams against the same streams written out token by token."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import Config, ConfigError, DataConfig, LossConfig, ModelConfig, RankingConfig
from gr_jax.data.batches import tokenizer
from gr_jax.data.batches.packing import Slots
from gr_jax.data.batches.sequences import Spans, label_spans
from gr_jax.data.dataset import Dataset, Events
from tests.data.batches.ranking_log import ACTIONS, random_dataset

TASKS = ("liked", "rating")
RANKING = ("interleave", "paired", "sum")
KINDS = ("retrieval", *RANKING)
N, MAX_SERIES = 4, 2


def scheme(kind: str, *, positive: int = -1) -> tokenizer.TokenScheme:
    return tokenizer.TokenScheme(
        kind, True, positive, () if kind == "retrieval" else TASKS, 2, MAX_SERIES
    )


def all_labels(dataset) -> Spans:
    return label_spans(
        dataset.events.offsets,
        dataset.events.offsets[:-1],
        dataset.events.offsets[1:],
        max_length=N,
    )


def inputs_only(dataset) -> Spans:
    """One sequence a user who has a next event: retrieval needs one."""
    user = np.flatnonzero(np.diff(dataset.events.offsets) > 1)
    end = dataset.events.offsets[user + 1] - 1
    begin = np.maximum(dataset.events.offsets[user], end - N)
    return Spans(user, dataset.events.offsets[user], begin, end - begin)


def written_out(dataset, spans: Spans, b: int, how: tokenizer.TokenScheme) -> list[dict]:
    """The tokens of sequence b, one dict each."""
    user, first, length = spans.user[b], spans.begin[b], spans.length[b]
    events = range(first, first + length)
    began = dataset.events.timestamp[first]
    since = lambda time: max(0, int(time - began))
    out = [{"user_feature": value} for value in dataset.events.user_features[user]]
    entries = range(dataset.events.series_offsets[user], dataset.events.series_offsets[user + 1])
    entries = [
        s for s in entries if dataset.events.series_time[s] <= dataset.events.timestamp[events[-1]]
    ][-MAX_SERIES:]
    before = 0
    for e in events:
        while entries and dataset.events.series_time[entries[0]] <= dataset.events.timestamp[e]:
            s = entries.pop(0)
            time = since(dataset.events.series_time[s])
            out.append(
                {"user_feature": dataset.events.series_value[s], "time": time, "query_time": time}
            )
        time, code = since(dataset.events.timestamp[e]), 1 + 2 * int(dataset.events.action[e])
        token = {
            "item": dataset.events.item[e],
            "time": time,
            "query_time": time,
            "item_features": dataset.catalogue.item_features[dataset.events.item[e]],
        }
        if how.kind == "retrieval":
            positive = how.positive_bit < 0 or dataset.events.action[e + 1] >> how.positive_bit & 1
            token |= {
                "query_time": since(dataset.events.timestamp[e + 1]),
                "label": dataset.events.item[e + 1] if positive else 0,
            }
            token["action"] = code
        else:
            is_label, rated = e >= spans.label_from[b], not np.isnan(dataset.events.rating[e])
            known = np.array([is_label, is_label and rated], np.float32)
            liked = dataset.events.action[e] >> ACTIONS.index("liked") & 1
            token |= {
                "outcome": np.nan_to_num([liked, dataset.events.rating[e]]) * known,
                "outcome_weight": known,
            }
        if how.kind == "sum":
            token["action"] = before
        out.append(token)
        if how.kind in ("interleave", "paired"):
            out.append({"action": code, "time": time, "query_time": time})
        if how.kind == "paired":
            out[-1] |= {name: token[name] for name in ("item", "item_features")}
        before = code
    return out


def lay_out(dataset, spans: Spans, how: tokenizer.TokenScheme, row_length: int = 16):
    """One sequence a row, from column b mod 3 on."""
    row = np.arange(len(spans))
    column = row % 3
    slots = Slots(row, column, len(spans), row_length)
    return tokenizer.fill_rows(dataset.events, dataset.catalogue, spans, how, slots), column


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rows_hold_the_streams_written_out_token_by_token(kind, seed):
    dataset = random_dataset(seed)
    how = scheme(kind, positive=1 if seed % 2 and kind == "retrieval" else -1)
    spans = inputs_only(dataset) if kind == "retrieval" else all_labels(dataset)
    batch, column = lay_out(dataset, spans, how)
    counts = tokenizer.token_counts(dataset.events, spans, how)
    for b in range(len(spans)):
        expected = written_out(dataset, spans, b, how)
        assert counts[b] == len(expected) <= how.max_tokens(N)
        for f in dataclasses.fields(batch):
            got = getattr(batch, f.name)
            if got is None or f.name in ("position", "segment"):
                continue
            want = np.zeros_like(got[b])
            for i, token in enumerate(expected):
                want[column[b] + i] = token.get(f.name, 0)
            np.testing.assert_array_equal(got[b], want, err_msg=f"{f.name} of sequence {b}")
        inside = np.arange(batch.item.shape[1]) - column[b]
        real = (inside >= 0) & (inside < len(expected))
        np.testing.assert_array_equal(batch.segment[b], real)
        np.testing.assert_array_equal(batch.position[b], np.where(real, inside, 0))


@pytest.mark.parametrize("kind", RANKING)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_happens_at_an_event_is_in_no_token_up_to_its_own(kind, seed):
    dataset, how = random_dataset(seed), scheme(kind)
    spans = all_labels(dataset)
    event = np.random.default_rng(seed).integers(dataset.num_events)
    action, rating = dataset.events.action.copy(), dataset.events.rating.copy()
    action[event], rating[event] = 3 - action[event], 6 - np.nan_to_num(rating[event])
    events = dataclasses.replace(dataset.events, action=action, rating=rating)
    changed = Dataset(dataset.catalogue, events)
    (before, _), (after, _) = (lay_out(d, spans, how) for d in (dataset, changed))
    row, column = np.arange(len(spans)), np.arange(len(spans)) % 3
    slots = Slots(row, column, len(spans), 16)
    place, events, _ = tokenizer.label_places(dataset.events, spans, how, slots)
    own = place[events == event]
    assert len(own) == 1
    row, own = divmod(int(own[0]), 16)
    for name in ("item", "time", "query_time", "action", "item_features", "user_feature"):
        np.testing.assert_array_equal(
            getattr(before, name)[row, : own + 1], getattr(after, name)[row, : own + 1]
        )
    if kind != "sum":
        assert before.action[row, own + 1] != after.action[row, own + 1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(RANKING))
def test_every_event_is_a_label_once_and_its_place_is_found(seed, kind):
    dataset, how = random_dataset(seed, features=seed % 2 == 0), scheme(kind)
    how = how if seed % 2 == 0 else dataclasses.replace(how, num_user_features=0, max_series=0)
    spans = all_labels(dataset)
    batch, column = lay_out(dataset, spans, how)
    slots = Slots(np.arange(len(spans)), column, len(spans), 16)
    place, event, owner = tokenizer.label_places(dataset.events, spans, how, slots)
    assert sorted(event) == list(range(dataset.num_events))
    np.testing.assert_array_equal(batch.item.reshape(-1)[place], dataset.events.item[event])
    np.testing.assert_array_equal(place // 16, owner)
    assert batch.outcome_weight[..., 0].sum() == dataset.num_events


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_kept_events_form_the_stream_of_a_log_that_has_only_those(seed):
    dataset, how = random_dataset(seed, features=False), scheme("interleave")
    how = dataclasses.replace(how, num_user_features=0, max_series=0)
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(dataset.num_events) < 0.6)
    user = np.searchsorted(dataset.events.offsets, kept, "right") - 1
    users, length = np.unique(user, return_counts=True)
    begin = np.cumsum(length) - length
    spans = Spans(
        users,
        dataset.events.offsets[users],
        begin,
        length,
        kept=kept,
        end=dataset.events.offsets[users + 1],
    )
    names = ("item", "timestamp", "rating", "action")
    columns = {name: getattr(dataset.events, name)[kept] for name in names}
    events = Events(offsets=np.concatenate([[0], np.cumsum(length)]), **columns)
    thin = Dataset(dataset.catalogue, events)
    same = Spans(np.arange(len(users)), begin, begin, length)
    one, other = lay_out(dataset, spans, how, 32)[0], lay_out(thin, same, how, 32)[0]
    for f in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, f.name), getattr(other, f.name), err_msg=f.name)


def test_the_label_of_a_kept_event_is_the_next_one_kept_and_of_the_last_the_next_there_is():
    spans = Spans(
        np.array([0]),
        np.array([0]),
        np.array([0]),
        np.array([2]),
        kept=np.array([1, 3]),
        end=np.array([6]),
    )
    np.testing.assert_array_equal(spans.following(), [3, 6])
    assert spans.last_event == [3]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            Config(loss=LossConfig(positive="loved"), data=DataConfig(actions=("loved=1",))),
            "no action 'loved'",
        ),
        (
            Config(
                data=DataConfig(actions=("liked=1",), max_length=20, row_length=41),
                ranking=RankingConfig(tasks=("liked",)),
            ),
            "config.data.row_length=41: a sequence can have 58 tokens",
        ),
    ],
)
def test_a_stream_that_cannot_be_made_says_why(config, reason):
    with pytest.raises(ConfigError, match=reason):
        tokenizer.token_scheme(config, random_dataset(0))


def test_tasks_and_actions_need_their_columns():
    dataset = random_dataset(0)
    events = dataclasses.replace(dataset.events, rating=None, action=None)
    dataset = Dataset(dataset.catalogue, events)
    ranking = Config(ranking=RankingConfig(tasks=("rating",)))
    with pytest.raises(ConfigError, match="no ratings for the task 'rating'"):
        tokenizer.token_scheme(ranking, dataset)
    with pytest.raises(ConfigError, match="the log has no actions"):
        tokenizer.token_scheme(Config(model=ModelConfig(use_actions=True)), dataset)
