"""Where the events, items and titles of each public format are, and own CSV and Parquet logs."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fnmatch
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import actions, attributes, download, parse, times, unpack
from gr_jax.data.log.attributes import Attributes
from gr_jax.data.log.layout import Layout

_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_AMAZON_2023 = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/0core/rating_only"
)
_KUAIRAND = "https://zenodo.org/records/10439422/files"
_KUAIRAND_RECORD = "https://zenodo.org/api/records/10439422"


@dataclass(frozen=True)
class Log:
    """A raw log in memory, in file order."""

    # user, item: Int64 or String; timestamp: Int64; optional rating: Float32, action: Int32, fraction: Float64 (times)
    events: pl.DataFrame
    unit: str = "s"  # of the timestamps, s or ms
    titles: pl.DataFrame | None = None  # item: raw id, title; both String
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> bad rows left out
    actions: tuple[str, ...] = ()  # name of each bit of events["action"]
    attributes: Attributes = field(default_factory=Attributes)  # of users and items, and series


@dataclass(frozen=True)
class RawFiles:
    """The files of a log, out of their archive but not decompressed."""

    layout: Layout  # of the format; `resolved` tells that of one file
    logs: tuple[Path, ...]  # in file order
    titles: Path | None
    beside: Path  # folder that the files of attributes are relative to


@dataclass(frozen=True)
class _Format:
    layout: Layout
    logs: tuple[str, ...]  # names of the files with events, as shell patterns
    titles: str = ""  # name of the file with titles
    several: bool = False  # whether several log files are parts of one log
    site: str = ""  # folder that `file` is downloaded from
    file: str = ""
    checksum: str = ""  # page with its MD5


def _movielens(name: str, layout: Layout, log: str, titles: str) -> _Format:
    file = f"{name}.zip"
    return _Format(
        layout, (log,), titles, site=_GROUPLENS, file=file, checksum=f"{_GROUPLENS}/{file}.md5"
    )


_MOVIELENS = Layout("userId", "movieId", "timestamp", rating="rating", integer_ids=True)
_KUAIRAND_ACTIONS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "is_profile_enter",
)
_NAMES = ("userId", "movieId", "rating", "timestamp")
_FORMATS = {
    "ml-100k": _movielens(
        "ml-100k",
        dataclasses.replace(_MOVIELENS, names=_NAMES, separator="\t", quoted=False),
        "u.data",
        "u.item",
    ),
    "ml-1m": _movielens(
        "ml-1m",
        dataclasses.replace(_MOVIELENS, names=_NAMES, separator="::", quoted=False),
        "ratings.dat",
        "movies.dat",
    ),
    "ml-20m": _movielens("ml-20m", _MOVIELENS, "ratings.csv", "movies.csv"),
    "amazon-2014": _Format(
        Layout(
            "user_id",
            "item_id",
            "timestamp",
            rating="rating",
            names=("user_id", "item_id", "rating", "timestamp"),
        ),
        ("ratings_*.csv", "ratings.csv"),
        site=_AMAZON_2014,
        file="ratings_Books.csv",
    ),
    "amazon-2023": _Format(
        Layout("user_id", "parent_asin", "timestamp", rating="rating", unit="ms"),
        ("*.csv", "*.jsonl"),
        site=_AMAZON_2023,
        file="Books.csv.gz",
    ),
    "kuairand": _Format(
        Layout(
            "user_id",
            "video_id",
            "time_ms",
            unit="ms",
            integer_ids=True,
            actions=tuple(actions.Action(name, name) for name in _KUAIRAND_ACTIONS),
        ),
        ("log_standard_*.csv",),
        several=True,
        site=_KUAIRAND,
        file="KuaiRand-1K.tar.gz",
        checksum=_KUAIRAND_RECORD,
    ),
}


def _format(config: DataConfig) -> _Format:
    format = _FORMATS.get(config.source)
    if format is None:
        columns = (config.user_column, config.item_column, config.time_column, config.rating_column)
        format = _Format(
            Layout(*columns, unit=config.time_unit), (f"*.{config.source}",), several=True
        )
    if config.actions:
        layout = dataclasses.replace(format.layout, actions=actions.parse(config.actions))
        format = dataclasses.replace(format, layout=layout)
    return format


def find(config: DataConfig) -> list[Path]:
    """The raw files at `config.path` ("" = data/<source>): logs, then titles; or an archive; or nothing.

    Raises:
      ConfigError: several files, and the format does not say they belong together.
    """
    place, format = _place(config), _format(config)
    if place.is_file():
        titles = place.with_name(format.titles) if format.titles else place
        return [place, titles] if titles != place and titles.is_file() else [place]
    for depth in (
        "",
        "*/",
        "*/*/",
    ):  # archives unpack into a folder of their own, KuaiRand's into two
        logs = _logs(place, depth, format, others=attributes.own_files(config))
        if len(logs) > 1 and not format.several:
            names = ", ".join(file.name for file in logs)
            raise ConfigError(f"{place}: several logs ({names}); set data.path to one of them")
        if logs:
            titles = logs[0].with_name(format.titles) if format.titles else None
            return [*logs, titles] if titles is not None and titles.is_file() else logs
    archive = place / format.file
    return [archive] if format.file and archive.is_file() and unpack.is_archive(archive) else []


def _place(config: DataConfig) -> Path:
    return Path(config.path).expanduser() if config.path else Path("data") / config.source


def _logs(place: Path, depth: str, format: _Format, *, others: Collection[str] = ()) -> list[Path]:
    """Log files at one depth, by name; a gzip file only where its plain one is not there, `others` only if alone."""
    patterns = [pattern + end for end in ("", ".gz") for pattern in format.logs]
    found = {file for pattern in patterns for file in place.glob(depth + pattern) if file.is_file()}
    files = {file for file in found if file.name not in others} or found
    return sorted(
        file for file in files if not (file.suffix == ".gz" and file.with_suffix("") in files)
    )


def fetch(config: DataConfig, *, progress: bool = False) -> list[Path]:
    """Downloads the raw log to where `find` looks, and returns what `find` then finds.

    Raises:
      ConfigError: the source has no site, or the download failed.
    """
    place, format = _place(config), _format(config)
    if not format.site:
        what = " or ".join(format.logs)
        raise ConfigError(
            f"data.path={config.path!r}: no such file, and no {what} in such a folder; set data.path"
        )
    url, target = f"{format.site}/{format.file}", place / format.file
    names = [pattern + end for pattern in format.logs for end in ("", ".gz")]
    if any(fnmatch.fnmatch(place.name, name) for name in names) or place.name == format.file:
        target = place if config.source.startswith("amazon") else place.with_name(format.file)
        url = f"{format.site}/{target.name}"  # Amazon: of any category
    elif place.suffix in (".csv", ".gz", ".dat", ".data", ".jsonl", ".zip", ".txt"):
        raise ConfigError(f"data.path={config.path!r}: no such file")
    download.download(url, target, checksum_url=format.checksum, progress=progress)
    return find(dataclasses.replace(config, path=str(target)))


def read(config: DataConfig, files: Sequence[Path]) -> Log:
    """The log in the files that `find` returned.

    Raises:
      ConfigError: a missing column, a damaged file, no log in an archive, or all times in another unit.
      BadRow: a row that cannot be used, unless config.on_bad_row is "skip".
    """
    with tempfile.TemporaryDirectory(prefix="gr_jax-") as scratch:
        raw = unpacked(config, files, Path(scratch))
        parts, layouts, bad = zip(
            *(_read_log(config, log, raw.layout, Path(scratch)) for log in raw.logs), strict=True
        )
        layout, events = common_layout(layouts, raw), _concat(parts)
        check_unit(events["timestamp"].max(), layout, raw)  # type: ignore[arg-type]
        log = with_actions(events, layout.actions, layout.action_columns)
        log = dataclasses.replace(log, events=_drop_empty_rating(log.events))
        return described(log, config, raw, layout, sum(bad, Counter()))


def unpacked(config: DataConfig, files: Sequence[Path], scratch: Path) -> RawFiles:
    """The files that `find` returned, those of an archive unpacked into `scratch`."""
    format, beside = _format(config), files[0].parent
    if unpack.is_archive(files[0]):
        files = _extract(files[0], format, scratch, also=attributes.official_files(config))
    logs = tuple(file for file in files if file.name != format.titles)
    titles = next((file for file in files if file.name == format.titles), None)
    return RawFiles(format.layout, logs, titles, beside)


def common_layout(layouts: Sequence[Layout], raw: RawFiles) -> Layout:
    """The layout of the first log; raises a ConfigError if another one has other actions."""
    if any(other.actions != layouts[0].actions for other in layouts):
        raise ConfigError(f"{raw.logs[0].parent}: the logs have different action columns")
    return layouts[0]


def check_unit(last: int | None, layout: Layout, raw: RawFiles) -> None:
    """Raises a ConfigError if the last time of the log says that its times are seconds, not milliseconds."""
    # Every time of a log of today, read as milliseconds when it is seconds, falls in the first weeks of 1970.
    if layout.unit == "ms" and last is not None and 0 < last < 5_000_000_000:
        remedy = "data.source=csv reads those with data.time_unit=s"
        shown = f"{raw.logs[0]}: as milliseconds its last time, {last}, is in 1970"
        raise ConfigError(f"{shown}: it looks like seconds; {remedy}")


def described(log: Log, config: DataConfig, raw: RawFiles, layout: Layout, skipped: Counter) -> Log:
    """`log` with its unit, the rows skipped, and what other files tell of its users and items."""
    found = attributes.find(config, beside=raw.beside, official=raw.logs[0].parent)
    titles = attributes.titles(config, found, layout)
    if titles is None and raw.titles is not None:
        titles = _titles(config.source, raw.titles)
    return dataclasses.replace(
        log,
        unit=layout.unit,
        titles=titles,
        skipped=dict(sorted(skipped.items())),
        attributes=attributes.read(config, found, layout),
    )


def with_actions(
    events: pl.DataFrame,
    happens: Sequence[actions.Action],
    columns: Mapping[actions.Action, str] | None = None,
) -> Log:
    """A log whose events have their actions as one bitmask instead of the columns that tell them.

    Args:
      columns: the column of `events` that each action looks at; None = the column of its name.

    Raises:
      ConfigError: an action looks at a column that is not there or has no numbers.
    """
    columns = columns or {action: action.column for action in happens}
    empty = [
        name
        for name in events.columns
        if events.height and events[name].null_count() == events.height
    ]
    told = usual_columns(events, happens, columns)
    actions.check_filled(happens, columns, set(events.columns) - set(empty))
    return Log(told, actions=tuple(action.name for action in happens))


def usual_columns(
    events: pl.DataFrame, happens: Sequence[actions.Action], columns: Mapping[actions.Action, str]
) -> pl.DataFrame:
    """user, item, timestamp and, if there are any, rating, action and fraction, of some or all events of a log."""
    if happens:
        events = actions.bits(events, happens, columns)
    usual = ("user", "item", "timestamp", "rating", "action", times.FRACTION)
    return events.select(name for name in usual if name in events.columns)


def _extract(archive: Path, format: _Format, scratch: Path, *, also: Sequence[str]) -> list[Path]:
    folder = scratch / "archive"
    folder.mkdir()
    patterns = [pattern + end for pattern in format.logs for end in ("", ".gz")] + [
        format.titles,
        *also,
    ]
    unpack.extract(
        archive, folder, wanted=lambda name: any(fnmatch.fnmatch(name, p) for p in patterns if p)
    )
    logs = _logs(folder, "", format)
    if not logs:
        raise ConfigError(f"{archive}: no {' or '.join(format.logs)} in it")
    return logs + [folder / format.titles] * bool(
        format.titles and (folder / format.titles).exists()
    )


def _read_log(
    config: DataConfig, file: Path, layout: Layout, scratch: Path
) -> tuple[pl.DataFrame, Layout, Counter]:
    if config.source == "parquet":
        events, skipped = parse.read_parquet(file, layout, on_bad_row=config.on_bad_row)
        return events, layout, skipped
    plain, truncated = decompressed(config, file, scratch)
    try:
        layout = resolved(config, plain, layout)
        read = parse.read_jsonl if plain.suffix == ".jsonl" else parse.read_text
        events, skipped = read(plain, layout, shown=file, on_bad_row=config.on_bad_row)
    finally:
        if plain != file:
            plain.unlink()
    return events, layout, skipped + truncated


def decompressed(config: DataConfig, file: Path, scratch: Path) -> tuple[Path, Counter]:
    """The text file itself, or that of a gzip file in `scratch`; and what had to be left out of it."""
    if file.suffix != ".gz":
        return file, Counter()
    plain = scratch / file.stem
    truncated = unpack.gunzip(file, plain, on_bad_row=config.on_bad_row)
    return plain, Counter({"truncated gzip file": truncated})


def resolved(config: DataConfig, plain: Path, layout: Layout) -> Layout:
    """The layout of one text file of the format: some have a header line, and not all have all actions."""
    if config.source == "amazon-2014" and "timestamp" in parse.header(plain, layout):
        layout = dataclasses.replace(
            layout, names=()
        )  # re-packed with a header line, as the k-cores are
    if layout.actions and not config.actions:
        present = set(parse.header(plain, layout))
        layout = dataclasses.replace(
            layout, actions=tuple(a for a in layout.actions if a.column in present)
        )
    return layout


def _concat(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The parts of a log; ids become strings where one part has integers and another strings (Parquet)."""
    for name in ("user", "item"):
        if len({part[name].dtype for part in parts}) > 1:
            parts = [part.with_columns(pl.col(name).cast(pl.String)) for part in parts]
    return times.concat(parts)


def _drop_empty_rating(events: pl.DataFrame) -> pl.DataFrame:
    if "rating" not in events.columns:
        return events
    empty = events["rating"].null_count() == events.height
    return (
        events.drop("rating")
        if empty
        else events.with_columns(pl.col("rating").fill_null(float("nan")))
    )


def _titles(source: str, file: Path) -> pl.DataFrame:
    """Titles of a MovieLens folder; lines that are not of the format have none."""
    encoding = "utf-8" if source == "ml-20m" else "latin-1"
    with open(file, encoding=encoding, errors="replace", newline="") as lines:
        if source == "ml-20m":
            fields = list(csv.reader(lines))[1:]
        else:
            fields = [line.split("|" if source == "ml-100k" else "::") for line in lines]
    pairs = []
    for first, second, *_ in filter(lambda row: len(row) > 1, fields):
        with contextlib.suppress(ValueError):
            pairs.append((str(int(first)), second))
    return pl.DataFrame(pairs, schema={"item": pl.String, "title": pl.String}, orient="row")
