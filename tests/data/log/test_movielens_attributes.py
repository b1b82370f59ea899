"""Users and films of each MovieLens release, in small files and in the real ones."""

import numpy as np
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log.movielens_attributes import READERS
from gr_jax.data.log.preparation import prepare


def read(source: str, kind: str, file, text: str) -> list[tuple]:
    file.write_text(text, "latin-1")
    return READERS[source, kind](file).rows()


def test_users_have_a_zip_region_where_the_code_begins_with_a_digit(tmp_path):
    frame = "1::F::1::10::48067\n2::M::56::16::98107-2117\n"
    assert read("ml-1m", "user", tmp_path / "users.dat", frame) == [
        ("1", "F", "1", "10", "48067", "4"),
        ("2", "M", "56", "16", "98107-2117", "9"),
    ]
    frame = "1|24|M|technician|85711\n74|39|M|scientist|T8H1N\n"
    assert [row[-1] for row in read("ml-100k", "user", tmp_path / "u.user", frame)] == ["8", None]


def test_films_have_genres_and_the_year_at_the_end_of_the_title(tmp_path):
    text = "661::2001: A Léon (Space) (1968)::Drama|Sci-Fi\n"
    assert read("ml-1m", "item", tmp_path / "movies.dat", text) == [
        ("661", "Drama|Sci-Fi", "1968", "1960")
    ]
    flags = "0|1" + "|0" * 16 + "|1"
    text = f"1|GoldenEye (1995)|01-Jan-1995||http://x|{flags}\n267|unknown||||1{'|0' * 18}\n"
    assert read("ml-100k", "item", tmp_path / "u.item", text) == [
        ("1", "Action|Western", "1995", "1990"),
        ("267", "", None, None),
    ]
    text = (
        'movieId,title,genres\n2,"American, The (1995)",Comedy|War\n3,Nothing,(no genres listed)\n'
    )
    assert read("ml-20m", "item", tmp_path / "movies.csv", text) == [
        ("2", "Comedy|War", "1995", "1990"),
        ("3", None, None, None),
    ]


def test_a_line_of_another_form_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"users\.dat:2: not raw::gender::age::occupation::zip in '2::M'; fetch"
    ):
        read("ml-1m", "user", tmp_path / "users.dat", "1::F::1::10::48067\n2::M\n")
    with pytest.raises(ConfigError, match=r"movies\.csv: not the films of MovieLens-20M"):
        read("ml-20m", "item", tmp_path / "movies.csv", "movieId,name\n1,x\n")


def test_the_real_movielens_1m_has_its_published_users_films_and_rates(tmp_path, shared_data):
    dataset = prepare(
        DataConfig(
            source="ml-1m",
            path=str(shared_data("ml-1m")),
            prepared=str(tmp_path / "out"),
            actions=("watched=1", "liked=rating>=4", "loved=rating>=5"),
            user_features=("gender", "age", "occupation", "zip_region"),
            item_features=("genres", "year"),
        )
    )
    counts = dict(dataset.catalogue.features.group_by("feature").len().iter_rows())
    assert counts == {
        "gender": 2,
        "age": 7,
        "occupation": 21,
        "zip_region": 10,
        "genres": 18,
        "year": 81,
    }
    assert (
        dataset.events.action is not None
        and dataset.events.user_features is not None
        and dataset.catalogue.item_features is not None
    )
    happened = [int(((dataset.events.action >> i) & 1).sum()) for i in range(3)]
    assert happened == [1_000_209, 575_281, 226_310]
    assert (np.bincount(dataset.events.user_features[:, 0])[1:] == [1709, 4331]).all(), (
        "women and men"
    )
    table = dataset.catalogue.features["value"]
    assert [
        table[int(v) - 1] for v in dataset.events.user_features[dataset.catalogue.user_index(1)]
    ] == [
        "F",
        "1",
        "10",
        "4",
    ]
    toys = dataset.catalogue.item_features[dataset.catalogue.item_ids([1])[0]]
    assert [table[int(v) - 1] for v in toys if v] == ["Animation", "Children's", "Comedy", "1995"]
    assert dataset.meta["skipped"] == {"item without events in movies.dat": 177}


def test_the_real_movielens_100k_has_its_published_genres(tmp_path, shared_data):
    path = str(shared_data("ml-100k"))
    out = str(tmp_path / "out")
    dataset = prepare(
        DataConfig(source="ml-100k", path=path, prepared=out, item_features=("genres",))
    )
    assert dataset.catalogue.item_features is not None
    of = {
        name: int((dataset.catalogue.item_features == i).sum())
        for i, name in enumerate(dataset.catalogue.features["value"], 1)
    }
    assert (len(of), of["Drama"], of["Comedy"], of["Film-Noir"]) == (18, 725, 505, 24)
