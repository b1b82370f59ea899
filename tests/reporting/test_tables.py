import dataclasses
from pathlib import Path

from gr_jax.config import Config, DataConfig, ModelConfig, RankingConfig
from gr_jax.config.overrides import override_all
from gr_jax.reporting import tables
from gr_jax.reporting.records import Record


def record(name: str, config: Config | None = None, **test: float) -> Record:
    result = {
        "valid": {},
        "test": {key.replace("at", "@"): v for key, v in test.items()},
        "baselines": {"popularity": {"hr@10": 0.1}},
    }
    return Record(Path(name), name, config or Config(), (), result)


def test_the_best_test_value_of_each_metric_is_marked_and_a_shared_baseline_is_there_once():
    table = tables.results(
        [record("a", hrat10=0.3, log_perplexity=5.0), record("b", hrat10=0.2, log_perplexity=4.0)]
    )
    best = {(table.rows[row][0], table.head[column]) for row, column in table.best}
    assert best == {("a", "hr@10"), ("b", "log_perplexity")}
    assert [row[:2] for row in table.rows] == [
        ("a", "valid"),
        ("a", "test"),
        ("b", "valid"),
        ("b", "test"),
        ("popularity", "test"),
    ]


def test_own_k_and_what_is_beyond_accuracy_have_tables_of_their_own():
    config = override_all(Config(), {"evaluate.at": "(5, 10)"})
    values = {"hr@10": 0.3, "hr@10/se": 0.01, "hr@5": 0.2, "coverage@10": 0.4, "cold": 0.1}
    run = record("a", config, **{name.replace("@", "at"): x for name, x in values.items()})
    assert tables.results([run]).rows[1] == ("a", "test", "0.3000 ±0.0100")
    further = tables.further_results([run])
    assert further["At other K"].head == ("run", "split", "hr@5")
    assert further["Beyond accuracy"].head == ("run", "split", "coverage@10", "cold")
    assert list(tables.further_results([record("b", hrat10=0.3)])) == []


def test_calibration_is_best_near_one():
    data = DataConfig(actions=("click=click",))
    config = Config(data=data, ranking=RankingConfig(tasks=("click",)))
    runs = [record(name, config) for name in "ab"]
    for run, value in zip(runs, (1.3, 0.9), strict=True):
        assert run.result is not None
        run.result["test"]["calibration/click"] = value
    table = tables.results(runs)
    assert {table.rows[row][0] for row, _ in table.best} == {"b"}


def test_configs_are_compared_with_one_another_or_with_the_defaults():
    wide = dataclasses.replace(Config(), model=ModelConfig(width=64), seed=3)
    rows = {row[0]: row[1:-1] for row in tables.differences([record("a"), record("b", wide)]).rows}
    assert rows == {"seed": ("0", "3"), "model.width": ("50", "64")}
    alone = tables.differences([record("b", wide)])
    assert alone.head == ("field", "default", "b", "meaning") and len(alone.rows) == 2
    assert all(row[-1] for row in alone.rows), "each field is explained"


def test_runs_with_other_tasks_or_on_another_log_are_not_compared():
    other = dataclasses.replace(Config(), data=DataConfig(source="ml-1m"))
    ranks = Config(
        data=DataConfig(actions=("click=click",)), ranking=RankingConfig(tasks=("click",))
    )
    groups = tables.kinds([record("a"), record("b", ranks), record("c"), record("d", other)])
    assert [[run.name for run in group] for group in groups] == [["a", "c"], ["b"], ["d"]]


def test_one_log_at_two_paths_is_one_and_other_events_are_another():
    def run(name: str, path: str, events: str) -> Record:
        config = Config(data=DataConfig(source="csv", path=path))
        log = {"num_users": 3, "num_items": 4, "num_events": 9, "hash": name, "events_hash": events}
        return dataclasses.replace(record(name, config), log=log)

    runs = [run("a", "log.csv", "f"), run("b", "/home/me/log.csv", "f"), run("c", "log.csv", "0")]
    assert [[one.name for one in group] for group in tables.kinds(runs)] == [["a", "b"], ["c"]]


RANKS = {"data.actions": "('liked=rating>=4',)", "ranking.tasks": "('liked',)"}
LIKED = {"data.actions": "('liked=rating>=4',)", "loss.positive": "liked"}


def test_runs_of_another_protocol_are_not_compared_and_their_headings_say_so():
    redefined = {"data.actions": "('liked=rating>=5',)"}
    changes = [
        {},
        {"data.filter": "k_core"},
        {"data.filter": "k_core", "data.min_events": "9"},
        {"evaluate.exclude": "visible"},
        {"evaluate.split": "time"},
        {"evaluate.split": "time", "evaluate.test_from": "0.95"},
        {"evaluate.split": "time", "evaluate.test_time": "2024-05-01"},
        {"evaluate.valid_users": "5"},
        LIKED,
        LIKED | redefined,
        RANKS,
        RANKS | redefined,
        RANKS | {"ranking.test_from": "0.95"},
        RANKS | {"ranking.valid_from": "0.7"},
    ]
    runs = [
        record(str(number), override_all(Config(), change)) for number, change in enumerate(changes)
    ]
    assert tables.kinds(runs) == [[run] for run in runs]
    assert len(set(map(tables.title, runs))) == len(runs)


def test_fields_that_decide_nothing_here_keep_runs_together():
    for common, free in (
        ({}, {"data.min_events": "9", "ranking.test_from": "0.95"}),
        (RANKS, {"evaluate.exclude": "none"}),
    ):
        runs = [
            record("a", override_all(Config(), common)),
            record("b", override_all(Config(), common | free)),
        ]
        assert tables.kinds(runs) == [runs]


def test_durations_have_the_unit_that_suits_them():
    assert [tables.duration(s) for s in (45.4, 600.0, 9000.0)] == ["45 s", "10 min", "2.5 h"]
