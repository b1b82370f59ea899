"""The dataset of `preparation.prepare`, made by Apache Beam on many machines (extra `[beam]`).

    files -> split -> pieces -> read -> events by hash of the user -> shards -> (filter) -> dataset

Workers and the launching process see the raw log and the output folder at the same paths, as on a
shared file system, and have gr_jax installed. In memory a worker has one piece (64 MiB of text, or
a whole file of text with quotes), or one shard and the raw ids of all items of the log. The
launching process has those ids too, the raw ids of the users that stay, what is known of users and
items, and a few million events. On disk, beside the output until it is complete, are the
decompressed log, the shards, the shards filtered, and the merged columns.
"""

from __future__ import annotations

import functools
import operator
import os
import pickle
import shlex
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gr_jax import folders
from gr_jax.config import ConfigError, DataConfig
from gr_jax.data import dataset
from gr_jax.data.beam import pieces, shards
from gr_jax.data.beam.pieces import Facts
from gr_jax.data.log import duplicates, formats, preparation, raw_log
from gr_jax.data.log.formats import RawFiles

_SHARD_BYTES = 64 << 20  # of the raw files, compressed or not, in a shard
_LEAST_SHARDS = 8  # work for a few workers, also of a small log
_ROUNDS = 4  # of k_core in one run: a cluster takes a while to begin one
# In this process: what DirectRunner takes for a batch, but by that name Beam first downloads
# another runner.
_LOCAL = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def build(
    config: DataConfig,
    raw: RawFiles | None,
    folder: Path,
    meta: dict,
    *,
    options: str = "",
    piece_bytes: int = pieces.SIZE,
    num_shards: int = 0,
) -> dataset.Dataset:
    """Read, filter and sort the log, number its users and items and write it, as `prepare` does.

    Args:
      options: of Beam, as on a command line; without --runner everything runs in this process.
      piece_bytes: of a text file, that a worker reads at once.
      num_shards: 0 = one for every 64 MiB of raw files, at least 8.

    Raises:
      ConfigError: as without Beam; it is not installed, its options are wrong, or the source is
        generated.
    """
    if raw is None:
        raise ConfigError(
            "data.source=synthetic is generated in one process: there is no log for Beam; use"
            " polars"
        )
    run = functools.partial(_run, _beam(), f"{_LOCAL} {options}")
    with folders.scratch_folder(folder.absolute()) as scratch:
        raw = formats.unpacked(config, raw.absolute(), scratch)
        num_shards = num_shards or max(
            _LEAST_SHARDS, sum(file.stat().st_size for file in raw.logs) // _SHARD_BYTES
        )
        facts, repeats = _read(run, config, raw, scratch, piece_bytes, num_shards)
        layout = pieces.checked(facts, raw)
        names = tuple(action.name for action in layout.actions)
        log = raw_log.described(
            raw_log.Log(pl.DataFrame(), actions=names), config, raw, layout, facts.skipped
        )
        duplicates.check(config.duplicates, repeats)
        counts = facts.items["events"].to_numpy()
        if config.duplicates == "drop" and sum(repeats.values()):
            counts = run(_item_counts(_shards(scratch), len(counts)), scratch)
        made = scratch  # folder of the shards
        if config.filter != "none" and counts.any():
            made = scratch / "kept"
            made.mkdir()
            counts = _filter(run, config, counts, scratch, made)
        if not counts.any():
            raise preparation.no_events(config, log)
        item_id = np.cumsum(counts > 0, dtype=np.int32)
        columns, users = shards.merge(_shards(made), item_id, scratch, integers=facts.integers[0])
        items = facts.items["raw"].filter(counts > 0)
        return preparation.write_log(folder, log, columns, users, items, repeats, meta)


def _read(
    run, config: DataConfig, raw: RawFiles, scratch: Path, piece_bytes: int, num_shards: int
) -> tuple[Facts, dict[str, int]]:
    """Write the shards of the whole log, unless it has an error; its facts, and its repeats."""

    def construct(beam, pipeline):
        numbers = pipeline | beam.Create(range(len(raw.logs)))
        split = beam.FlatMap(_split, config, raw, scratch, piece_bytes)
        files = numbers | "split" >> split.with_outputs("facts", main="pieces")
        read = beam.FlatMap(_read_piece, config, num_shards)
        parts = (
            files.pieces | beam.Reshuffle() | "read" >> read.with_outputs("facts", main="events")
        )
        facts = (files.facts, parts.facts) | beam.Flatten() | beam.CombineGlobally(pieces.together)
        facts |= "number items" >> beam.Map(pieces.numbered)
        counts = (
            parts.events
            | beam.GroupByKey()
            | "write" >> beam.Map(_write, beam.pvalue.AsSingleton(facts), config, raw, scratch)
            | "add repeats" >> beam.CombineGlobally(_added)
        )
        return facts | "both" >> beam.Map(_pair, beam.pvalue.AsSingleton(counts))

    return run(construct, scratch)


def _added(counts):
    counts = list(counts)
    return {name: sum(some.get(name, 0) for some in counts) for name in ("repeats", "changes")}


def _pair(one, other):
    return one, other


def _item_counts(paths: list[Path], items: int):
    """A pipeline that counts the events of each item in the shards."""

    def construct(beam, pipeline):
        kept = np.ones(items, bool)
        each = pipeline | beam.Create(paths) | beam.Reshuffle()
        return each | beam.Map(shards.item_counts, kept, k=1) | beam.CombineGlobally(_sum)

    return construct


def _split(number, config, raw, scratch, piece_bytes):
    """Number of a file -> its pieces, and facts."""
    from apache_beam.pvalue import TaggedOutput  # pyright: ignore[reportMissingImports]

    some, facts = pieces.split(config, raw, number, scratch, piece_bytes)
    yield from some
    yield TaggedOutput("facts", facts)


def _read_piece(piece, config, num_shards):
    """Piece -> (shard, (place of the piece, events)), and facts."""
    from apache_beam.pvalue import TaggedOutput  # pyright: ignore[reportMissingImports]

    events, facts = pieces.read(piece, config)
    if events is not None:
        for shard, part in shards.parts(events, num_shards):
            yield shard, (piece.place, part)
    yield TaggedOutput("facts", facts)


def _write(group, facts, config, raw, scratch):
    """(shard, its blocks) -> its repeats, and a shard on disk, unless the log has an error."""
    try:
        unit = pieces.checked(facts, raw).unit
    except ConfigError:
        return {}
    drop = config.duplicates == "drop"
    return shards.write(scratch, group[0], group[1], facts, unit, drop_repeats=drop)


def _filter(run, config: DataConfig, counts: np.ndarray, scratch: Path, made: Path) -> np.ndarray:
    """Write the shards with the events that stay, and count those of each item."""
    k, kept, paths = config.min_events, counts >= config.min_events, _shards(scratch)

    def rounds(beam, pipeline):
        each = pipeline | "shards" >> beam.Create(paths) | beam.Reshuffle()
        # Items, and their number before the last round.
        left = pipeline | beam.Create([(kept, 0)])
        for i in range(_ROUNDS):
            total = each | f"count {i}" >> beam.Map(_count, beam.pvalue.AsSingleton(left), k)
            total |= f"sum {i}" >> beam.CombineGlobally(_sum)
            left = total | f"keep {i}" >> beam.Map(_fewer, beam.pvalue.AsSingleton(left), k)
        return left

    if config.filter == "k_core":
        before = None
        # A round that leaves the same number of items leaves the same items: the core.
        while kept.sum() != before:
            kept, before = run(rounds, scratch)

    def last(beam, pipeline):
        keep = beam.Map(shards.keep, made, kept, k=k, counted_once=config.filter == "one_pass")
        return pipeline | beam.Create(paths) | beam.Reshuffle() | keep | beam.CombineGlobally(_sum)

    return run(last, scratch)


def _count(shard, left, k):
    return shards.item_counts(shard, left[0], k=k)


def _fewer(counts, left, k):
    return counts >= k, left[0].sum()


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


def _sum(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return functools.reduce(operator.add, arrays, np.zeros((), np.int64))


def _beam() -> Any:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "preparing with Beam needs Apache Beam: pip install 'gr-jax[beam]'"
        ) from None
    return apache_beam


def _run(beam: Any, options: str, construct: Callable[[Any, Any], Any], scratch: Path) -> Any:
    """Run the pipeline of `construct(beam, pipeline)`; its result is the one element of that."""
    result = scratch / "result.pickle"
    try:
        made = beam.options.pipeline_options.PipelineOptions(
            shlex.split(options), pipeline_type_check=False
        )
        pipeline = beam.Pipeline(options=made)
    except (ValueError, SystemExit) as error:
        raise ConfigError(f"Beam does not take the options {options!r}: {error}") from None
    _ = construct(beam, pipeline) | "result" >> beam.Map(
        lambda one: _replace(result, pickle.dumps(one))
    )
    pipeline.run().wait_until_finish()
    return pickle.loads(result.read_bytes())


def _replace(file: Path, content: bytes) -> None:
    """Write a file at once: a worker may repeat it while the first one still writes."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as building:
        building.write(content)
    os.replace(building.name, file)
