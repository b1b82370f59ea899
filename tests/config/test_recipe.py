"""The config that a log gets by rules."""

import ast

import pytest

from gr_jax.config import DataConfig, files
from gr_jax.config.recipe import LogFacts, choose

MUSIC = LogFacts(users=1_429, items=900, events=10_254, long_history=17, repeats=0.0)


def test_a_small_log_gets_a_small_model_that_is_compared_with_all_items():
    config, reasons = choose(DataConfig(path="clicks.csv"), MUSIC)
    assert (config.data.max_length, config.data.row_length) == (50, 64)
    assert config.loss.kind == "full" and config.model.temperature == 0.2
    assert config.evaluate.exclude == "history" and config.data.path == "clicks.csv"
    assert any("95 % of the users have at most 17" in line for line in reasons)


def test_of_a_log_that_is_hardly_enough_the_choice_says_so():
    few = choose(DataConfig(), MUSIC._replace(users=20, events=120)).reasons
    assert few[-1].startswith("120 events are few for a model")
    assert not any("few for a model" in line for line in choose(DataConfig(), MUSIC).reasons)


def test_what_is_not_held_back_by_many_events_is_by_dropout_and_smoothing():
    small, large = (
        choose(DataConfig(), MUSIC._replace(items=3_000, events=events)).config
        for events in (100_000, 1_000_000)
    )
    assert (small.model.dropout, small.loss.smoothing, small.model.temperature) == (0.5, 0.1, 0.1)
    assert (large.model.dropout, large.loss.smoothing, large.model.temperature) == (0.2, 0, 0.05)


def test_repeats_are_ranked_where_there_are_many():
    assert choose(DataConfig(), MUSIC._replace(repeats=0.3)).config.evaluate.exclude == "none"


@pytest.mark.parametrize("users", [20, 5_000, 3_000_000])
@pytest.mark.parametrize("items", [3, 60_000, 2_000_000])
@pytest.mark.parametrize("long_history", [1, 90, 50_000])
def test_any_log_gets_a_config_that_holds_together(users, items, long_history):
    log = LogFacts(users, items, users * 10, long_history, 0.5)
    config, _ = choose(DataConfig(), log)  # its checks would raise
    assert config.data.max_length <= config.data.row_length
    assert config.optimizer.table == ("rowwise_adamw" if items > 500_000 else "dense")


def test_a_config_is_written_as_python_that_gives_it_back(tmp_path):
    config, reasons = choose(DataConfig(path="a 'b'.csv", actions=("seen=seen",)), MUSIC)
    file = tmp_path / "config.py"
    doc = "\n\n".join(['Chosen for """ + quit() + """\\.csv', *reasons]) + "\n"
    file.write_text(files.to_python(config, doc))
    assert files.load(str(file)) == config
    assert ast.get_docstring(ast.parse(file.read_text()), clean=False) == doc
    assert "b1=" not in file.read_text(), "defaults are left out"
