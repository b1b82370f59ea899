"""Entries of a sharded table to the devices that ask, and their gradients back to the owners.

Entries lie over all devices, batches over `data`. Two ways, chosen by `mesh.exchange`:

gather: every device receives all ids, adds the entries that it has to a sum over devices, and later
  receives all gradients. Simple; each device handles the entries of the whole batch.
all_to_all: a device asks each owner for its entries and sends their gradients there, in messages of
  fixed size; so it handles its share only. Skew that would overflow a message is met with more
  rounds of messages, counted at run time: no entry is ever left out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from gr_jax.models.lookup import AXES, ambient_devices, own_entries
from gr_jax.training.tables.batch_entries import distinct_ids

OVER_ALL, OVER_DATA = PartitionSpec(AXES), PartitionSpec("data")
# (table, moments, strictly ascending entries, some beyond the table, gradients, number of the first
# entry of `table` in the whole table) -> table, moments
Update = Callable[[Array, PyTree, Array, Array, Array | int], tuple[Array, PyTree]]


def batch_parts() -> int | None:
    """S, the parts of a batch that the ambient mesh holds apart.

    None on one device, where arrays have no axis S.
    """
    return ambient_devices().get("data")


def fetch(
    table: Float[Array, "rows D"], entries: Int[Array, "*S U"], *, exchange: str
) -> Float[Array, "*S U D"]:
    """Entries of the table in its dtype, zeros for numbers beyond it.

    entries: strictly ascending in each part of the batch.
    """
    devices = ambient_devices()
    if not devices:
        return table.at[entries].get(mode="fill", fill_value=0)

    def per_device(
        table: Float[Array, "rows D"], entries: Int[Array, "1 U"]
    ) -> Float[Array, "1 U D"]:
        if exchange == "all_to_all":
            return _fetch_by_messages(table, entries[0], devices)[None]
        everyone = own_entries(table, jax.lax.all_gather(entries[0], "data", tiled=True))
        everyone = jax.lax.psum_scatter(everyone, "data", scatter_dimension=0, tiled=True)
        return jax.lax.psum(everyone, "model")[None]

    return _on_devices(per_device, (OVER_ALL, OVER_DATA), OVER_DATA)(table, entries)


def deliver(
    update: Update,
    table: Float[Array, "rows D"],
    moments: PyTree,
    entries: Int[Array, "*S U"],
    gradients: Float[Array, "*S U D"],
    *,
    exchange: str,
) -> tuple[Float[Array, "rows D"], PyTree]:
    """`update` of all entries, once each, with the sum of their gradients over the parts.

    moments: arrays with a value for each entry of the table. entries: as for `fetch`.
    """
    devices = ambient_devices()
    if not devices:
        return update(table, moments, entries, gradients, 0)

    def per_device(
        table: Array, moments: PyTree, entries: Int[Array, "1 U"], gradients: Float[Array, "1 U D"]
    ) -> PyTree:
        if exchange == "all_to_all":
            return _deliver_by_messages(update, table, moments, entries[0], gradients[0], devices)
        entries, gradients = (
            jax.lax.all_gather(x[0], "data", tiled=True) for x in (entries, gradients)
        )
        return _update_own(update, table, moments, entries, gradients)

    specs = (OVER_ALL, OVER_ALL, OVER_DATA, OVER_DATA)
    return _on_devices(per_device, specs, (OVER_ALL, OVER_ALL))(table, moments, entries, gradients)


def _on_devices(per_device: Callable, inputs: PyTree, outputs: PyTree) -> Callable:
    # Without the check, which rejects rounds of messages counted on the devices. None of this is
    # differentiated.
    return jax.shard_map(per_device, in_specs=inputs, out_specs=outputs, check_vma=False)


def _update_own(
    update: Update,
    table: Array,
    moments: PyTree,
    entries: Int[Array, " T"],
    gradients: Float[Array, "T D"],
) -> PyTree:
    """`update` of the entries in this device's shard; an entry may be named several times."""
    first = jax.lax.axis_index(AXES) * len(table)
    local = entries - first
    local = jnp.where((local >= 0) & (local < len(table)), local, len(table))
    distinct, place = distinct_ids(local, len(local), len(table))
    total = jnp.zeros_like(gradients).at[place].add(gradients)
    return update(table, moments, distinct, total, first)


# Rounds of messages


def _fetch_by_messages(
    table: Float[Array, "rows D"], entries: Int[Array, " U"], devices: dict
) -> Float[Array, "U D"]:
    count = devices["data"] * devices["model"]
    size = _message_size(len(entries), count)
    rounds = _rounds(entries, len(table), devices, size)

    def one_round(number: Array, taken: Float[Array, "U D"]) -> Float[Array, "U D"]:
        slot, sent = _slots(entries, len(table), devices, size, rounds, number)
        nothing = jnp.full(count * size, count * len(table), entries.dtype)
        asked = _to_owners(nothing.at[slot].set(entries, mode="drop"))
        answer = _to_owners(own_entries(table, asked))
        return jnp.where(sent[:, None], answer.at[slot].get(mode="clip"), taken)

    start = jnp.zeros((len(entries), table.shape[1]), table.dtype)
    return jax.lax.psum(jax.lax.fori_loop(0, rounds, one_round, start), "model")


def _deliver_by_messages(
    update: Update,
    table: Array,
    moments: PyTree,
    entries: Int[Array, " U"],
    gradients: Float[Array, "U D"],
    devices: dict,
) -> PyTree:
    count = devices["data"] * devices["model"]
    size = _message_size(len(entries), count)
    rounds = _rounds(entries, len(table), devices, size)

    def one_round(number: Array, carry: PyTree) -> PyTree:
        table, moments = carry
        slot, _ = _slots(entries, len(table), devices, size, rounds, number)
        nothing = jnp.full(count * size, count * len(table), entries.dtype)
        owned = _to_owners(nothing.at[slot].set(entries, mode="drop"))
        message = jnp.zeros((count * size, gradients.shape[1]), gradients.dtype)
        received = _to_owners(message.at[slot].set(gradients, mode="drop"))
        return _update_own(update, table, moments, owned, received)

    return jax.lax.fori_loop(0, rounds, one_round, (table, moments))


def _to_owners(x: Array) -> Array:
    """Send part i of this device's x to device i; the parts received, in the order of senders."""
    return jax.lax.all_to_all(x, AXES, 0, 0, tiled=True)


def _message_size(entries: int, devices: int) -> int:
    """Entries of one message between two devices: enough for evenly spread, distinct entries."""
    return -(-entries // devices)


def _rounds(
    entries: Int[Array, " U"], shard_entries: int, devices: dict, size: int
) -> Int[Array, ""]:
    """Rounds in which no message of any device overflows: 1, 2, 4, ..."""
    count = devices["data"] * devices["model"]

    def overflows(rounds: Int[Array, ""]) -> Bool[Array, ""]:
        owner, mine = _owners(entries, shard_entries, devices)
        message = jnp.sort(
            jnp.where(mine, owner * rounds + _round_of(entries, devices, rounds), count * rounds)
        )
        too_many = (message[size:] == message[:-size]) & (message[size:] < count * rounds)
        return jax.lax.pmax(too_many.any(), AXES)

    return jax.lax.while_loop(overflows, lambda rounds: rounds * 2, jnp.ones((), jnp.int32))


def _slots(
    entries: Int[Array, " U"],
    shard_entries: int,
    devices: dict,
    size: int,
    rounds: Int[Array, ""],
    number: Int[Array, ""],
) -> tuple[Int[Array, " U"], Bool[Array, " U"]]:
    """Places of entries in the messages of round `number`, and which entries are in it.

    The others have places beyond the messages.
    """
    count = devices["data"] * devices["model"]
    owner, mine = _owners(entries, shard_entries, devices)
    sent = mine & (_round_of(entries, devices, rounds) == number)
    before = jnp.cumsum(sent) - sent  # entries of this round before each entry
    first = jnp.searchsorted(owner, jnp.arange(count))  # ascending entries have ascending owners
    place = before - before.at[first].get(mode="clip")[jnp.minimum(owner, count - 1)]
    return jnp.where(sent, owner * size + place, count * size), sent


def _owners(
    entries: Int[Array, " U"], shard_entries: int, devices: dict
) -> tuple[Int[Array, " U"], Bool[Array, " U"]]:
    """The device that has each entry, and which entries this device asks for.

    The devices along `model` have the same entries to ask for, and share them out.
    """
    owner = entries // shard_entries
    turn = entries % devices["model"] == jax.lax.axis_index("model")
    return owner, turn & (owner < devices["data"] * devices["model"])


def _round_of(entries: Int[Array, " U"], devices: dict, rounds: Int[Array, ""]) -> Int[Array, " U"]:
    # By its number, so that all devices send the gradients of an entry in the same round: an update
    # needs their sum.
    return entries // devices["model"] % rounds
