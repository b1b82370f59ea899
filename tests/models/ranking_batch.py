"""Random ranking sequences (prefix, events, slow series, candidates) and packed batches of them."""

import jax.numpy as jnp
import numpy as np

from gr_jax.data.batches.batch import Batch

ITEMS, VALUES, ACTIONS, TASKS, ITEM_FEATURES = 40, 9, 3, 2, 2
FIELDS = (
    "item",
    "time",
    "query_time",
    "position",
    "action",
    "user_feature",
    "target",
    "item_features",
)


def token(**fields) -> dict:
    """One token; what is not given is 0."""
    return {
        name: np.zeros(ITEM_FEATURES, np.int32) if name == "item_features" else 0 for name in FIELDS
    } | fields


def random_sequence(
    rng: np.random.Generator, *, contexts: int, events: int, candidates: int
) -> list[dict]:
    """Prefix, then item and action tokens with a slow series between some, then candidates with one position."""

    def item():
        return dict(
            item=rng.integers(1, ITEMS + 1),
            item_features=rng.integers(0, VALUES + 1, ITEM_FEATURES),
        )

    def value():
        return dict(user_feature=rng.integers(1, VALUES + 1))

    tokens, time = [token(**value()) for _ in range(contexts)], 0
    for _ in range(events):
        time += int(rng.integers(0, 10**6))
        if rng.random() < 0.3:
            tokens.append(token(**value(), time=time))
        tokens.append(token(**item(), time=time))
        tokens.append(token(action=1 + 2 * rng.integers(0, 2**ACTIONS), time=time))
    for position, t in enumerate(tokens):
        t["position"] = position
    last = token(time=time + 1000, position=len(tokens), target=1)
    tokens += [last | item() for _ in range(candidates)]
    return [t | {"query_time": t["time"]} for t in tokens]


def place(
    sequences: list[list[dict]], slots: list[tuple[int, int]], shape: tuple[int, int]
) -> Batch:
    """The batch with each sequence at its (row, column)."""
    fields = {
        name: np.zeros((*shape, ITEM_FEATURES) if name == "item_features" else shape, np.int32)
        for name in FIELDS
    }
    segment = np.zeros(shape, np.int32)
    for number, (sequence, (row, column)) in enumerate(zip(sequences, slots, strict=True), 1):
        segment[row, column : column + len(sequence)] = number
        for offset, t in enumerate(sequence):
            for name in FIELDS:
                fields[name][row, column + offset] = t[name]
    target = jnp.asarray(fields.pop("target") != 0)
    return Batch(
        segment=jnp.asarray(segment),
        target=target,
        **{name: jnp.asarray(a) for name, a in fields.items()},
    )


def one_per_row(sequences: list[list[dict]], shape: tuple[int, int]) -> Batch:
    """The batch with each sequence at the start of a row."""
    return place(sequences, [(row, 0) for row in range(len(sequences))], shape)
