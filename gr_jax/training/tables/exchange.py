"""Rows of a sharded table to the devices that touch them, and their gradients back to the devices that have them.

Rows lie over all devices, batches over `data`. Two ways, chosen by `mesh.exchange`:

gather: every device hears all row numbers, adds what it has to a sum over devices, and later hears all gradients.
  Simple; each device handles the rows of the whole batch.
all_to_all: a device asks each owner for its rows and sends their gradients there, in messages of fixed size; so it
  handles its share only. Skew that would overflow a message is met with more rounds of messages, counted at run time:
  no row is ever left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gr_jax.models.lookup import AXES, ambient_devices, own_rows
from gr_jax.training.tables.batch_entries import distinct_ids

OVER_ALL, OVER_DATA, WHOLE = PartitionSpec(AXES), PartitionSpec("data"), PartitionSpec()
# (table, state, strictly ascending rows, some beyond the table, gradients, number of the first row) -> table, state
Update = Callable[[Array, Any, Array, Array, Array | int], tuple[Array, Any]]


def batch_parts() -> int | None:
    """S, the parts of a batch that the ambient mesh holds apart; None on one device, where arrays have no axis S."""
    return ambient_devices().get("data")


def fetch(
    table: Float[Array, "rows D"], rows: Int[Array, "*S U"], *, exchange: str
) -> Float[Array, "*S U D"]:
    """Rows of the table in its dtype, zeros for numbers beyond it.

    rows: strictly ascending in each part of the batch.
    """
    devices = ambient_devices()
    if not devices:
        return table.at[rows].get(mode="fill", fill_value=0)

    def per_device(table: Float[Array, "rows D"], rows: Int[Array, "1 U"]) -> Float[Array, "1 U D"]:
        if exchange == "gather":
            everyone = own_rows(table, jax.lax.all_gather(rows[0], "data", tiled=True))
            everyone = jax.lax.psum_scatter(everyone, "data", scatter_dimension=0, tiled=True)
            return jax.lax.psum(everyone, "model")[None]
        return _fetch_by_messages(table, rows[0], devices)[None]

    return _on_devices(per_device, (OVER_ALL, OVER_DATA), OVER_DATA)(table, rows)


def deliver(
    update: Update,
    table: Float[Array, "rows D"],
    state: Any,
    rows: Int[Array, "*S U"],
    gradients: Float[Array, "*S U D"],
    *,
    exchange: str,
) -> tuple[Float[Array, "rows D"], Any]:
    """`update` of all rows, once each, with the sum of their gradients over the parts.

    state: arrays with one entry for each row of the table. rows: as for `fetch`.
    """
    devices = ambient_devices()
    if not devices:
        return update(table, state, rows, gradients, 0)

    def per_device(
        table: Array, state: Any, rows: Int[Array, "1 U"], gradients: Float[Array, "1 U D"]
    ) -> Any:
        if exchange == "gather":
            rows, gradients = (
                jax.lax.all_gather(x[0], "data", tiled=True) for x in (rows, gradients)
            )
            return _update_own(update, table, state, rows, gradients)
        return _deliver_by_messages(update, table, state, rows[0], gradients[0], devices)

    specs = (OVER_ALL, OVER_ALL, OVER_DATA, OVER_DATA)
    return _on_devices(per_device, specs, (OVER_ALL, OVER_ALL))(table, state, rows, gradients)


def _on_devices(per_device: Callable, inputs: Any, outputs: Any) -> Callable:
    # Without the check that rounds of messages, counted on the devices, do not pass. None of this is differentiated.
    return jax.shard_map(per_device, in_specs=inputs, out_specs=outputs, check_vma=False)


def _update_own(
    update: Update, table: Array, state: Any, rows: Int[Array, " T"], gradients: Float[Array, "T D"]
) -> Any:
    """`update` of those rows that are in this device's shard; rows may be named several times."""
    first = jax.lax.axis_index(AXES) * len(table)
    local = rows - first
    local = jnp.where((local >= 0) & (local < len(table)), local, len(table))
    distinct, place = distinct_ids(local, len(local), len(table))
    return update(table, state, distinct, jnp.zeros_like(gradients).at[place].add(gradients), first)


def _fetch_by_messages(
    table: Float[Array, "rows D"], rows: Int[Array, " U"], devices: dict
) -> Float[Array, "U D"]:
    count = devices["data"] * devices["model"]
    size = _message_size(len(rows), count)
    rounds = _rounds(rows, len(table), devices, size)

    def one_round(number: Array, taken: Float[Array, "U D"]) -> Float[Array, "U D"]:
        slot, sent = _slots(rows, len(table), devices, size, rounds, number)
        asked = _to_owners(
            jnp.full(count * size, count * len(table), rows.dtype).at[slot].set(rows, mode="drop")
        )
        answer = _to_owners(own_rows(table, asked))
        return jnp.where(sent[:, None], answer.at[slot].get(mode="clip"), taken)

    taken = jax.lax.fori_loop(
        0, rounds, one_round, jnp.zeros((len(rows), table.shape[1]), table.dtype)
    )
    return jax.lax.psum(taken, "model")


def _deliver_by_messages(
    update: Update,
    table: Array,
    state: Any,
    rows: Int[Array, " U"],
    gradients: Float[Array, "U D"],
    devices: dict,
) -> Any:
    count = devices["data"] * devices["model"]
    size = _message_size(len(rows), count)
    rounds = _rounds(rows, len(table), devices, size)

    def one_round(number: Array, carry: Any) -> Any:
        slot, _ = _slots(rows, len(table), devices, size, rounds, number)
        owned = _to_owners(
            jnp.full(count * size, count * len(table), rows.dtype).at[slot].set(rows, mode="drop")
        )
        message = jnp.zeros((count * size, gradients.shape[1]), gradients.dtype)
        return _update_own(
            update,
            carry[0],
            carry[1],
            owned,
            _to_owners(message.at[slot].set(gradients, mode="drop")),
        )

    return jax.lax.fori_loop(0, rounds, one_round, (table, state))


def _to_owners(x: Array) -> Array:
    """Part i of this device's x to device i, and the parts that were meant for this device, in their order."""
    return jax.lax.all_to_all(x, AXES, 0, 0, tiled=True)


def _message_size(rows: int, devices: int) -> int:
    """Rows of one message from a device to another: what evenly spread rows, all of them distinct, would need."""
    return -(-rows // devices)


def _rounds(rows: Int[Array, " U"], shard_rows: int, devices: dict, size: int) -> Int[Array, ""]:
    """Rounds in which no message of any device overflows: 1, 2, 4, ..."""
    count = devices["data"] * devices["model"]

    def overflows(rounds: Int[Array, ""]) -> Bool[Array, ""]:
        owner, mine = _owners(rows, shard_rows, devices)
        message = jnp.sort(
            jnp.where(mine, owner * rounds + _round_of(rows, devices, rounds), count * rounds)
        )
        too_many = (message[size:] == message[:-size]) & (message[size:] < count * rounds)
        return jax.lax.pmax(too_many.any(), AXES)

    return jax.lax.while_loop(overflows, lambda rounds: rounds * 2, jnp.ones((), jnp.int32))


def _slots(
    rows: Int[Array, " U"],
    shard_rows: int,
    devices: dict,
    size: int,
    rounds: Int[Array, ""],
    number: Int[Array, ""],
) -> tuple[Int[Array, " U"], Bool[Array, " U"]]:
    """Places of rows in the messages of round `number`, beyond them for the others; and which rows are in it."""
    count = devices["data"] * devices["model"]
    owner, mine = _owners(rows, shard_rows, devices)
    sent = mine & (_round_of(rows, devices, rounds) == number)
    before = jnp.cumsum(sent) - sent  # rows of this round before each row
    first = jnp.searchsorted(owner, jnp.arange(count))  # ascending rows have ascending owners
    place = before - before.at[first].get(mode="clip")[jnp.minimum(owner, count - 1)]
    return jnp.where(sent, owner * size + place, count * size), sent


def _owners(
    rows: Int[Array, " U"], shard_rows: int, devices: dict
) -> tuple[Int[Array, " U"], Bool[Array, " U"]]:
    """The device that has each row; and which rows this device asks for, of those that all along `model` know."""
    owner = rows // shard_rows
    turn = rows % devices["model"] == jax.lax.axis_index("model")
    return owner, turn & (owner < devices["data"] * devices["model"])


def _round_of(rows: Int[Array, " U"], devices: dict, rounds: Int[Array, ""]) -> Int[Array, " U"]:
    # By its number, so that all devices send the gradients of a row in the same round: an update needs their sum.
    return rows // devices["model"] % rounds
