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
