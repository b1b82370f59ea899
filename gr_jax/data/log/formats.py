"""The raw files of each public format and of own logs: where they are, and where to fetch them."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import actions, attributes, download, unpack
from gr_jax.data.log.layout import Layout

_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_AMAZON_2023 = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/0core/rating_only"
)
_KUAIRAND = "https://zenodo.org/records/10439422/files"
_KUAIRAND_RECORD = "https://zenodo.org/api/records/10439422"


@dataclass(frozen=True)
class RawFiles:
    """The files of a raw log, still compressed."""

    layout: Layout  # of the format; `raw_log.resolved` gives that of one file
    logs: tuple[Path, ...] = ()  # in file order
    titles: Path | None = None
    # of features: under "user", "item" and the names of the series
    attributes: dict[str, Path] = field(default_factory=dict)
    archive: Path | None = None  # which has the others, as long as it is not unpacked

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them: the content of the dataset depends on these."""
        log = (self.archive,) if self.archive else (*self.logs, self.titles)
        return tuple(file for file in (*log, *self.attributes.values()) if file)

    def absolute(self) -> RawFiles:
        """The same files by absolute paths, for workers in other folders."""
        return RawFiles(
            self.layout,
            tuple(file.absolute() for file in self.logs),
            self.titles and self.titles.absolute(),
            {name: file.absolute() for name, file in self.attributes.items()},
            self.archive and self.archive.absolute(),
        )


@dataclass(frozen=True)
class _Format:
    layout: Layout
    logs: tuple[str, ...]  # names of the files with events, as shell patterns
    titles: str = ""  # name of the file with titles
    several: bool = False  # if true several log files are parts of one log
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
FORMATS = {
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
    format = FORMATS.get(config.source)
    if format is None:
        columns = (config.user_column, config.item_column, config.time_column, config.rating_column)
        format = _Format(
            Layout(*columns, unit=config.time_unit), (f"*.{config.source}",), several=True
        )
    if config.actions:
        layout = dataclasses.replace(format.layout, actions=actions.parse(config.actions))
        format = dataclasses.replace(format, layout=layout)
    return format


def find(config: DataConfig) -> RawFiles | None:
    """The raw files at `config.path` ("" = data/<source>); no logs and archive if none are there.

    None for a generated log, which has no files.

    Raises:
      ConfigError: several logs, and the format does not say they belong together; features that
        the source does not have, or without their file.
    """
    attributes.check(config)
    if config.source == "synthetic":
        return None
    place, format = _place(config), _format(config)
    if place.is_file():
        if unpack.is_archive(place):
            return _in_archive(config, place, format)
        return _beside(config, [place], format)
    # Archives unpack into a folder of their own, KuaiRand's into two.
    for depth in ("", "*/", "*/*/"):
        logs = _logs(place, depth, format, others=attributes.own_files(config))
        if len(logs) > 1 and not format.several:
            names = ", ".join(file.name for file in logs)
            raise ConfigError(f"{place}: several logs ({names}); set data.path to one of them")
        if logs:
            return _beside(config, logs, format)
    archive = place / format.file
    if format.file and archive.is_file() and unpack.is_archive(archive):
        return _in_archive(config, archive, format)
    return RawFiles(format.layout)


def _beside(config: DataConfig, logs: Sequence[Path], format: _Format) -> RawFiles:
    """Logs with the titles and attributes that stand beside the first of them."""
    folder = logs[0].parent
    titles = folder / format.titles if format.titles else None
    if titles is not None and (titles == logs[0] or not titles.is_file()):
        titles = None
    found = attributes.find(config, beside=folder, official=folder)
    return RawFiles(format.layout, tuple(logs), titles, found)


def _in_archive(config: DataConfig, archive: Path, format: _Format) -> RawFiles:
    """An archive, and the attributes that are not in it."""
    found = attributes.find(config, beside=archive.parent, official=None)
    return RawFiles(format.layout, attributes=found, archive=archive)


def unpacked(config: DataConfig, raw: RawFiles, scratch: Path) -> RawFiles:
    """The same files, those of an archive unpacked into `scratch`."""
    if raw.archive is None:
        return raw
    format = _format(config)
    logs, titles = _extract(raw.archive, format, scratch, also=attributes.official_files(config))
    found = attributes.find(config, beside=raw.archive.parent, official=logs[0].parent)
    return RawFiles(format.layout, tuple(logs), titles, found)


def _place(config: DataConfig) -> Path:
    return Path(config.path).expanduser() if config.path else Path("data") / config.source


def _logs(place: Path, depth: str, format: _Format, *, others: Collection[str] = ()) -> list[Path]:
    """Log files at one depth, by name; gzip files without a plain one, `others` only if alone."""
    patterns = [pattern + end for end in ("", ".gz") for pattern in format.logs]
    found = {file for pattern in patterns for file in place.glob(depth + pattern) if file.is_file()}
    files = {file for file in found if file.name not in others} or found
    return sorted(
        file for file in files if not (file.suffix == ".gz" and file.with_suffix("") in files)
    )


def fetch(config: DataConfig, *, progress: bool = False) -> RawFiles:
    """Download the raw log to where `find` looks.

    Raises:
      ConfigError: the source has no site, or the download failed.
    """
    place, format = _place(config), _format(config)
    if not format.site:
        what = " or ".join(format.logs)
        there = sorted({file.suffix for file in place.glob("*.*")} & {".csv", ".tsv", ".parquet"})
        hint = f", but {' and '.join(there)} files: name one, or data.source" * bool(there)
        raise ConfigError(
            f"data.path={config.path!r}: no such file, and no {what} in such a folder{hint};"
            " set data.path"
        )
    url, target = f"{format.site}/{format.file}", place / format.file
    names = [pattern + end for pattern in format.logs for end in ("", ".gz")]
    if any(fnmatch.fnmatch(place.name, name) for name in names) or place.name == format.file:
        target = place if config.source.startswith("amazon") else place.with_name(format.file)
        url = f"{format.site}/{target.name}"  # Amazon: of any category
    elif place.suffix in (".csv", ".gz", ".dat", ".data", ".jsonl", ".zip", ".txt"):
        raise ConfigError(f"data.path={config.path!r}: no such file")
    download.download(url, target, checksum_url=format.checksum, progress=progress)
    found = find(dataclasses.replace(config, path=str(target)))
    assert found is not None
    return found


def _extract(
    archive: Path, format: _Format, scratch: Path, *, also: Sequence[str]
) -> tuple[list[Path], Path | None]:
    """The logs of an archive, written into `scratch`, and its titles."""
    folder = scratch / "archive"
    folder.mkdir()
    patterns = [pattern + end for pattern in format.logs for end in ("", ".gz")]
    patterns += [format.titles, *also]
    unpack.extract(
        archive, folder, wanted=lambda name: any(fnmatch.fnmatch(name, p) for p in patterns if p)
    )
    logs = _logs(folder, "", format)
    if not logs:
        raise ConfigError(f"{archive}: no {' or '.join(format.logs)} in it")
    titles = folder / format.titles
    return logs, titles if format.titles and titles.exists() else None
