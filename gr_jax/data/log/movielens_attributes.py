"""Attributes of users and films in the files of each MovieLens release.

A reader returns `raw` (the id in the log) and one column for each attribute of the file:
of a user a string, of a film a string with "|" between several values; null = unknown.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError

# ML-100K has a 0/1 column for each, after "unknown", in this order.
_GENRES_100K = (
    "Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|Mystery|"
    "Romance|Sci-Fi|Thriller|War|Western"
).split("|")


def _users_100k(file: Path) -> pl.DataFrame:
    return _zip_region(_lines(file, "|", ("raw", "age", "gender", "occupation", "zip")))


def _users_1m(file: Path) -> pl.DataFrame:
    return _zip_region(_lines(file, "::", ("raw", "gender", "age", "occupation", "zip")))


def _items_100k(file: Path) -> pl.DataFrame:
    films = _lines(
        file, "|", ("raw", "title", "released", "video", "imdb", "unknown", *_GENRES_100K)
    )
    genres = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K]
    return _years(
        films.with_columns(genres=pl.concat_str(genres, separator="|", ignore_nulls=True))
    )


def _items_1m(file: Path) -> pl.DataFrame:
    return _years(_lines(file, "::", ("raw", "title", "genres")))


def _items_20m(file: Path) -> pl.DataFrame:
    try:
        films = pl.read_csv(file, infer_schema=False).rename({"movieId": "raw"})
        return _years(
            films.with_columns(genres=pl.col("genres").replace("(no genres listed)", None))
        )
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"{file}: not the films of MovieLens-20M ({str(error).splitlines()[0][:120]})"
        ) from None


READERS = {
    ("ml-100k", "user"): _users_100k,
    ("ml-100k", "item"): _items_100k,
    ("ml-1m", "user"): _users_1m,
    ("ml-1m", "item"): _items_1m,
    ("ml-20m", "item"): _items_20m,
}


def _lines(file: Path, separator: str, names: tuple[str, ...]) -> pl.DataFrame:
    fields = []
    with open(file, encoding="latin-1", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            row = line.rstrip("\r\n").split(separator)
            if row == [""]:
                continue
            if len(row) != len(names) or not row[0].strip().isdigit():
                raise ConfigError(
                    f"{file}:{number}: not {separator.join(names)} in {line.strip()[:200]!r};"
                    " fetch it again"
                )
            fields.append([str(int(row[0])), *row[1:]])
    return pl.DataFrame(fields, schema=dict.fromkeys(names, pl.String), orient="row")


def _zip_region(users: pl.DataFrame) -> pl.DataFrame:
    """Add the region: first digit of a United States zip code; others may begin with a letter."""
    return users.with_columns(zip_region=pl.col("zip").str.extract(r"^(\d)"))


def _years(films: pl.DataFrame) -> pl.DataFrame:
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$")
    return films.select("raw", "genres", year=year, decade=year.str.slice(0, 3) + "0")
