"""`gr_jax.fit`: from a table of events to a model that answers, in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import math
import os
import shutil
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import narwhals as nw
import polars as pl

from gr_jax import folders
from gr_jax.config import Config, ConfigError, DataConfig
from gr_jax.config.overrides import leaves, override_all
from gr_jax.data.log import detect, frames
from gr_jax.errors import shown, tells_types
from gr_jax.serving.load import load
from gr_jax.serving.model import TrainedModel
from gr_jax.serving.tables import EVENTS, LOG_FOLDER
from gr_jax.training.console import say, silence
from gr_jax.training.own_log import config_for
from gr_jax.training.train import train
from gr_jax.training.workdir import has_begun
from gr_jax.tuning.search import search

ITEMS, PREPARED = "items.parquet", "prepared"  # in the folder of the log
_BY_ARGUMENTS = {f"data.{name}" for name in "source path prepared item_file".split()} | {
    f"data.{name}_column" for name in ("user", "item", "time")
}
_LENGTHS = ("data.max_length", "data.row_length")  # chosen together, after the log is known

T = TypeVar("T")
Override = str | int | float | bool | tuple[str, ...] | list[str]


@tells_types
def fit(
    events: frames.Table | pl.LazyFrame | str | os.PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    time: str = "time",
    config: Config | None = None,
    workdir: str | os.PathLike[str] | None = None,
    items: frames.Table | pl.LazyFrame | str | os.PathLike[str] | None = None,
    progress: bool = True,
    budget: float = 1.0,
    **overrides: Override,
) -> TrainedModel:
    """A model trained on a table of events, ready to recommend.

    It is the training of `python -m gr_jax.train`: without a config all is chosen by the log, and
    the same call with the same `workdir` resumes it. Ctrl-C ends it with the best model so far.

        import gr_jax
        import polars as pl

        model = gr_jax.fit(pl.read_csv("clicks.csv"), item="product", time="clicked_at")
        model.recommend_users(k=10).write_parquet("recommended.parquet")

    Args:
      events: a table of polars, pandas or pyarrow with a row for each time that a user took an
        item, or the path of a CSV or Parquet file. Ids are integers or text; times are date-times,
        dates, their text, or numbers in s, ms, us or ns, which is seen by their size.
      user, item, time: names of its columns.
      config: of a training, instead of what the log decides; its log is that of `events`.
      workdir: folder of the run; None = a temporary one that lives as long as the model, which
        `save` can keep.
      items: a table or file with the item column. A column `title` names the items, and those of
        `data.item_features` are features: where it has none, all others.
      progress: False prints nothing.
      budget: without a config: trainings that the search of settings near those chosen may take;
        0 = none.
      overrides: fields of the config by dotted names: `**{"train.epochs": 5}`; columns of what
        happened at an event too: `**{"data.actions": ("click=is_click",)}`.

    Raises:
      ConfigError: a mistake in the table, the arguments or the config, in one line.
      KeyboardInterrupt: Ctrl-C before the first validation.
    """
    if config is not None and not isinstance(config, Config):
        raise ConfigError(f"config={shown(config)}: expected a gr_jax.Config, or None")
    if not 0 <= budget < math.inf:
        raise ConfigError(f"budget={shown(budget)}: must be a number of trainings, 0 or more")
    _check_names(overrides)
    if len({user, item, time}) < 3:
        raise ConfigError(f"user={user!r}, item={item!r}, time={time!r}: each has its own column")
    texts = {name: _text(value) for name, value in overrides.items()}
    columns = {"user_column": user, "item_column": item, "time_column": time}

    with contextlib.nullcontext() if progress else silence():
        place, close = _folder(workdir)
        try:
            with _tables_named(place):
                data, like = _log(events, items, _data(config, columns, texts), place)
                if config is None:
                    by_log = config_for(data, place)
                    chosen = override_all(by_log, texts)
                    if chosen.data.time_unit != by_log.data.time_unit:  # it is read once more
                        shutil.rmtree(place / LOG_FOLDER / PREPARED, ignore_errors=True)
                    fixed = tuple(texts)
                    config, code = search(chosen, place, float(budget), fixed=fixed, settles=True)
                else:
                    config, code = override_all(dataclasses.replace(config, data=data), texts), 0
                model = _trained(config, place, code)
        except BaseException:
            close()
            raise
        model.like = like
        weakref.finalize(model, close)
        return model


@contextlib.contextmanager
def _tables_named(workdir: Path) -> Iterator[None]:
    """Let errors name the tables of the caller, and not the files that they became."""
    try:
        yield
    except ConfigError as error:
        told = str(error)
        for file in (EVENTS, ITEMS):
            told = told.replace(str(workdir / LOG_FOLDER / file), file.removesuffix(".parquet"))
        if told == str(error):
            raise
        raise ConfigError(told) from None


def _folder(workdir: str | os.PathLike[str] | None) -> tuple[Path, Callable[[], None]]:
    """The folder of the run, and what removes it if it is temporary."""
    if workdir is not None:
        if not os.fspath(workdir):
            raise ConfigError("workdir='' is no folder: name one, or leave it out")
        return Path(workdir).expanduser(), lambda: None
    folder = tempfile.TemporaryDirectory(prefix="gr_jax-")
    return Path(folder.name), folder.cleanup


def _data(
    config: Config | None, columns: Mapping[str, str], overrides: Mapping[str, str]
) -> DataConfig:
    """How the log is read: as the config and the overrides say, by the columns of the caller."""
    base = config or Config()
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, **columns))
    wanted = {
        name: text
        for name, text in overrides.items()
        if name.startswith("data.") and name not in _LENGTHS
    }
    return override_all(base, wanted).data


def _log(
    events: object, items: object, data: DataConfig, workdir: Path
) -> tuple[DataConfig, nw.DataFrame | None]:
    """The log of a run: tables become files in its workdir; and what the tables look like."""
    folder, like = workdir / LOG_FOLDER, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folders.unwritable(workdir, error) from None
    if not has_begun(workdir):  # what is there is of a call that came to nothing
        shutil.rmtree(folder / PREPARED, ignore_errors=True)
    log = _path(events)
    if log is None:
        log = folder / EVENTS
        like = _kept(log, workdir, lambda file: frames.write_events(events, data, file))
    data = dataclasses.replace(data, path=str(log), prepared=str(folder / PREPARED / "dataset"))

    if items is not None:
        file = _path(items)
        if file is None:
            file = folder / ITEMS
            features = _kept(file, workdir, lambda file: frames.write_items(items, data, file))
        else:
            features = frames.features_of(file, data)
        # Beside the log it is known by its name, wherever the folder goes.
        name = file.name if file.parent == log.parent else str(file.absolute())
        data = dataclasses.replace(data, item_file=name, item_features=features)
    elif data.item_features and not data.item_file:
        raise ConfigError(f"data.item_features={data.item_features}: give their table by items=")
    return detect.described(data), like


def _path(given: object) -> Path | None:
    """The file that an argument names; None for a table.

    Raises:
      ConfigError: it is not there.
    """
    if not isinstance(given, str | os.PathLike):
        return None
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    return path


def _kept(file: Path, workdir: Path, write: Callable[[Path], T]) -> T:
    """What `write` returns for a file, which stays that of the run if one has begun.

    Raises:
      ConfigError: the run is on another log; or as `write`, whose table is named, not its file.
    """
    new = file.with_name(f".{file.name}")
    try:
        result = write(new)
        if not has_begun(workdir):
            os.replace(new, file)
        elif not (file.exists() and pl.read_parquet(new).equals(pl.read_parquet(file))):
            raise ConfigError(
                f"{workdir} holds a run on another log: choose another workdir; gr_jax.load opens"
                " the one that is there"
            )
        return result
    finally:
        new.unlink(missing_ok=True)


def _trained(config: Config, workdir: Path, code: int) -> TrainedModel:
    """The best model of the training, which goes on if it has begun.

    code: of the search before it; 0 = it was not interrupted.
    """
    code = code or train(config, workdir)
    shutil.rmtree(workdir / LOG_FOLDER / PREPARED, ignore_errors=True)  # the run has its own
    if code == 128 + signal.SIGTERM:
        raise SystemExit(code)
    try:
        model = load(workdir)
    except ConfigError:
        if not code:
            raise
        raise KeyboardInterrupt("there is no model yet: no validation has passed") from None
    if code:
        say("the model is the best one until then")
    return model


def _check_names(overrides: Mapping[str, Override]) -> None:
    """Raise a ConfigError for what is no argument and no field, or a field that arguments set."""
    if taken := next((name for name in overrides if name in _BY_ARGUMENTS), ""):
        raise ConfigError(f"{taken}: events, user, item, time and items of fit decide it")
    known = [name for name in inspect.signature(fit).parameters if name != "overrides"]
    for name in overrides:
        if "." not in name and name not in leaves(Config()):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            fields = 'fields of the config have dotted names, **{"train.epochs": 5}'
            raise ConfigError(f"fit has no argument {name!r}{hint} ({fields})")


def _text(value: Override) -> str:
    """A value as the command line has it."""
    if isinstance(value, str):
        return value
    return repr(tuple(value) if isinstance(value, list) else value)
