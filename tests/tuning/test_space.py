import pytest

from gr_jax.config import Config, ConfigError
from gr_jax.tuning.space import Choices, Range, combinations, parse


def test_choices_and_ranges_are_read_as_the_types_of_their_fields():
    texts = [
        "model.width=32, 64,128,64",
        "config.loss.kind=full,group",
        "model.remat=true,false",
        "optimizer.learning_rate=1e-4:1e-2:log",
        "model.dropout=0:0.5",
        "model.num_blocks=1:4",
    ]
    assert parse(texts, Config()) == [
        Choices("model.width", ("32", "64", "128")),
        Choices("loss.kind", ("full", "group")),
        Choices("model.remat", ("true", "false")),
        Range("optimizer.learning_rate", 1e-4, 1e-2, True, False),
        Range("model.dropout", 0.0, 0.5, False, False),
        Range("model.num_blocks", 1, 4, False, True),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model.widht=1,2", "config has no field 'model.widht'; did you mean config.model.width"),
        ("model=1,2", "config has no field 'model'"),
        ("model.width", "expected FIELD=A,B,C or FIELD=LOW:HIGH"),
        ("model.width=", "expected FIELD=A,B,C or FIELD=LOW:HIGH"),
        ("model.width=32,wide", "config.model.width: expected int, got 'wide'"),
        ("model.width=1:x", "config.model.width: expected int, got 'x'"),
        ("model.width=8:2", "the first has to be the smaller number"),
        ("model.dropout=0:1:log", "a logarithm needs numbers above 0"),
        ("model.dropout=0:1:lgo", "did you mean log?"),
        ("model.dropout=0:1:2:3", "only log may follow"),
    ],
)
def test_a_search_that_means_nothing_is_one_line(text, told):
    with pytest.raises(ConfigError, match="--search") as error:
        parse([text], Config())
    assert told in str(error.value)


def test_a_field_is_searched_once():
    with pytest.raises(ConfigError, match="model.width is given twice"):
        parse(["model.width=1,2", "config.model.width=3,4"], Config())


def test_all_combinations_are_listed_where_there_are_choices_alone():
    listed = combinations(parse(["model.width=1,2", "loss.kind=full,group"], Config()))
    assert listed is not None and len(listed) == 4
    assert listed[1] == {"model.width": "1", "loss.kind": "group"}
    assert combinations(parse(["model.width=1,2", "model.dropout=0:1"], Config())) is None
