"""Own files of attributes beside a log, with a header line or Parquet: their columns as text."""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data.log import parse, unpack

# Types whose text is a name that people would know again.
_NAMES = (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Date, pl.Datetime, pl.Null)


def read(
    file: Path,
    what: Mapping[str, str],
    *,
    lists: Collection[str] = (),
    typed: Collection[str] = (),
) -> pl.DataFrame:
    """The columns `what` (name -> purpose) of a file, as text or lists of text.

    Args:
      lists: columns that may have a list in a cell.
      typed: columns that keep the type that they have in a Parquet file.

    Raises:
      ConfigError: the file cannot be read; it lacks a column, or has it twice, or of a type whose
        text is no name.
    """
    if is_parquet(file):
        check_columns(file, columns(file), what)
        with _readable(file):
            frame = pl.read_parquet(file, columns=list(what))
        texts = {name: name in lists for name in what if name not in typed}
        return frame.with_columns(
            _text(frame, name, file, lists=may) for name, may in texts.items()
        )
    with _plain(file) as plain:
        mark = parse.delimiter(plain, what)
        names = parse.header(plain, mark)
        check_columns(file, names, what)
        with _readable(file):
            frame = pl.read_csv(plain, infer_schema=False, separator=mark)
        return frame.select(pl.nth(names.index(name)).alias(name) for name in what)


def columns(file: Path) -> list[str]:
    """Names of the columns; raises as `read`."""
    if is_parquet(file):
        with _readable(file):
            return list(pl.read_parquet_schema(file))
    with _plain(file) as plain:
        return parse.header(plain, parse.delimiter(plain, ()))


@contextlib.contextmanager
def _plain(file: Path) -> Iterator[Path]:
    """The file as text in UTF-8, which is not empty."""
    with tempfile.TemporaryDirectory(prefix="gr_jax-") as scratch:
        plain, _ = unpack.plain_text(file, Path(scratch), on_bad_row="error")
        if not plain.stat().st_size:
            raise ConfigError(f"{file}: empty file")
        yield plain


def _text(frame: pl.DataFrame, name: str, file: Path, *, lists: bool) -> pl.Expr:
    """A column as text, or as lists of text."""
    kind = frame.schema[name]
    inner = kind.inner if lists and isinstance(kind, pl.List) else kind
    if not (isinstance(inner, _NAMES) or inner.is_numeric()):
        raise ConfigError(f"{file}: column {name!r} is {kind}, not text, numbers or date-times")
    return pl.col(name).cast(pl.List(pl.String) if isinstance(kind, pl.List) else pl.String)


def check_columns(
    file: Path, there: Sequence[str], what: Mapping[str, str], hidden: str = ""
) -> None:
    """Raise a ConfigError that names a column that is missing or there twice."""
    for name, purpose in what.items():
        if there.count(name) > 1:
            raise ConfigError(f"{file}: the {purpose} {name!r} is there twice; rename the other")
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            did_you_mean = f"; did you mean {near[0]!r}?" if near else ""
            shown = ", ".join(repr(column) for column in there if column != hidden)
            raise ConfigError(f"{file}: no {purpose} {name!r}, only {shown[:500]}{did_you_mean}")


def is_parquet(file: Path) -> bool:
    """True by the name of a file or its first bytes."""
    with open(file, "rb") as content:
        return file.suffix == ".parquet" or content.read(4) == b"PAR1"


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn errors of a file that cannot be read into a ConfigError."""
    try:
        yield
    except pl.exceptions.NoDataError:
        raise ConfigError(f"{file}: empty file") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        kind = "Parquet" if is_parquet(file) else "CSV"
        raise ConfigError(
            f"{file}: not a readable {kind} file ({str(error).splitlines()[0][:120]})"
        ) from None
