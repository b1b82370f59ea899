import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import gr_jax
from gr_jax import recommend
from gr_jax.config import ConfigError
from gr_jax.data.batches.tokenizer import TokenScheme
from gr_jax.serving import tables, user_lists
from gr_jax.serving.all_users import LogUsers
from gr_jax.serving.history import RequestError
from gr_jax.serving.index import ExactIndex
from gr_jax.serving.retriever import Encoder, Retriever
from gr_jax.serving.rows import RowMaker


@pytest.fixture(scope="module")
def model(retrieval):
    return gr_jax.load(retrieval)


@pytest.fixture(scope="module")
def ranker(ranking):
    return gr_jax.load(ranking)


def lists_one_by_one(model, users, **asked) -> dict[str, list[tuple[str, float]]]:
    answers = {user: model.recommend(model.history(user), user=user, **asked) for user in users}
    return {user: [(i.item, i.score) for i in answer] for user, answer in answers.items()}


def assert_same(table: pl.DataFrame, expected: dict) -> None:
    found = {
        user: rows.sort("rank").select("item", "score").rows()
        for (user,), rows in table.group_by("user", maintain_order=True)
    }
    assert list(found) == [user for user in expected if expected[user]]
    for user, rows in found.items():
        assert [item for item, _ in rows] == [item for item, _ in expected[user]], user
        np.testing.assert_allclose(
            [score for _, score in rows], [score for _, score in expected[user]], atol=1e-5
        )


def assert_close(table, expected):
    assert_frame_equal(table, expected, abs_tol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"k": 100, "exclude_seen": False},
        {"at_time": 1_900_000_000, "allow": ["i7", "i2", "i9"]},
        {"deny": ["i1", "never there"], "k": 3},
    ],
    ids=str,
)
def test_a_table_of_users_is_what_each_would_get_alone(model, asked):
    users = ["u3", "u11", "u2", "u60"]
    assert_same(model.recommend_users(users, **asked), lists_one_by_one(model, users, **asked))


def test_the_tokens_of_packed_users_are_those_of_each_alone(ranker):
    """Of histories with actions, item and user features, series, and more events than are seen."""
    dataset, asked, batches = ranker.dataset, 1_900_000_000, []
    scheme = TokenScheme("retrieval", True, -1, (), num_user_features=1, max_series=3)
    maker = RowMaker(dataset, scheme, max_events=8)

    def encode(batch, token):
        batches.append((batch, token))
        return np.zeros((len(token), 4), np.float32)

    trained = dataclasses.replace(ranker._trained, encode=encode)
    index = ExactIndex(np.zeros((21, 4), np.float32), num_items=20)
    answerer = Retriever(Encoder(lambda *_: None, maker), index)
    users = np.arange(48)
    log = LogUsers(ranker.reader, answerer, ranker.popular, trained)
    assert log.vectors(users, log.asked(users, asked)).shape == (48, 4)

    names = dataset.catalogue.raw_users(users)
    alone = maker.histories([ranker.reader.of_log(name, at_time=asked) for name in names])
    expected = sorted(row.time[0].tobytes() + row.item[0].tobytes() for row in alone)
    ((batch, token),) = batches
    found = []
    for row, column in zip(*np.divmod(token[:48], batch.item.shape[1]), strict=True):
        here = batch.segment[row] == batch.segment[row, column]
        (one,) = [x for x in alone if np.array_equal(x.item[0], batch.item[row, here])]
        for name in ("time", "query_time", "position", "action", "item_features", "user_feature"):
            np.testing.assert_array_equal(getattr(batch, name)[row, here], getattr(one, name)[0])
        found.append(one.time[0].tobytes() + one.item[0].tobytes())
    assert sorted(found) == expected


def test_a_catalogue_in_pieces_gives_the_same_lists(model, retrieval, monkeypatch):
    pieces = gr_jax.load(retrieval)
    vectors = pieces.answerer.index.vectors
    monkeypatch.setattr(pieces.answerer, "index", ExactIndex(vectors, num_items=40, chunk=16))
    assert_close(pieces.recommend_users(k=30), model.recommend_users(k=30))


def test_ids_are_integers_if_all_are(model, tmp_path):
    catalogue = model.dataset.catalogue
    assert tables.id_types(model.dataset, None, None) == (pl.String, pl.String)
    for name in ("users", "items"):
        table = getattr(catalogue, name).with_columns(raw=pl.col("raw").str.slice(1))
        table.write_parquet(tmp_path / f"{name}.parquet")
    numbers = dataclasses.replace(catalogue, folder=tmp_path)
    dataset = dataclasses.replace(model.dataset, catalogue=numbers)
    assert tables.id_types(dataset, None, None) == (pl.Int64, pl.Int64)
    # Users of a newer log may have other names.
    assert tables.id_types(dataset, None, model.dataset) == (pl.String, pl.Int64)


def test_all_users_come_in_the_order_of_the_log_and_one_of_a_list_once(model):
    table = model.recommend_users(k=2)
    assert table.columns == ["user", "item", "rank", "score"]
    assert table["user"].unique(maintain_order=True).to_list() == (
        model.dataset.catalogue.users["raw"].to_list()
    )
    assert model.recommend_users(pl.Series(["u3", "u1", "u3"]), k=1)["user"].to_list() == [
        "u3",
        "u1",
    ]


def test_a_ranking_model_orders_by_the_prediction_of_a_task(ranker):
    users = ["u3", "u11"]
    asked = {"k": 4, "task": "rating"}
    assert_same(ranker.recommend_users(users, **asked), lists_one_by_one(ranker, users, **asked))


def test_what_a_ranking_model_has_not_is_told_in_a_line(ranker):
    for call in (ranker.item_vectors, ranker.user_vectors, lambda: ranker.similar_items(["i1"])):
        with pytest.raises(RequestError, match="a ranking model has no vectors"):
            call()


def test_products_of_vectors_are_scores_and_similar_items_have_the_largest_cosine(model):
    items, users = model.item_vectors(), model.user_vectors(["u3", "u5"])
    x, q = items["vector"].to_numpy(), users["vector"].to_numpy()
    history = model.history("u5")
    expected = [i.score for i in model.score(history, items["item"].to_list(), user="u5")]
    np.testing.assert_allclose(x @ q[1], expected, atol=1e-5)

    near = model.similar_items(["i3", "i8"], k=39)
    assert near.columns == ["item", "similar_item", "rank", "score"]
    names = items["item"].to_list()
    cosine = x @ x[names.index("i8")]
    best = [names[i] for i in np.argsort(-cosine, kind="stable") if names[i] != "i8"]
    assert near.filter(item="i8")["similar_item"].to_list() == best
    assert len(model.similar_items(["i3"], k=1000)) == 39, "there are no more"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m.recommend_users(["u3", "x", "y"]), "the log has no users 'x', 'y'$"),
        (lambda m: m.recommend_users("u3"), "users='u3': expected a list of ids"),
        (lambda m: m.recommend_users([3.5]), "users: an id is 3.5"),
        (lambda m: m.recommend_users(k=0), "k=0: must be an integer"),
        (lambda m: m.recommend_users(at_time=5), "at_time=5 is before the last event of 64 users"),
        (lambda m: m.similar_items(["x"]), "unknown items: 'x'"),
        (lambda m: m.evaluate("train"), "split='train': must be test or valid"),
    ],
)
def test_a_mistake_is_one_line(model, call, told):
    with pytest.raises(RequestError, match=told):
        call(model)


def test_a_saved_model_is_a_run_that_evaluates_as_before_and_is_never_written_over(
    model, retrieval, tmp_path, result_of
):
    model.save(tmp_path / "copy")
    copy = gr_jax.load(tmp_path / "copy")
    assert copy.evaluate() == pytest.approx(result_of(retrieval)["test"])
    assert copy.recommend_users(["u3"], k=3).equals(model.recommend_users(["u3"], k=3))
    with pytest.raises(RequestError, match="is there already"):
        model.save(tmp_path / "copy")


# -- Files --------------------------------------------------------------------------------------


def write(run, out, *flags: str) -> pl.DataFrame:
    assert recommend.main([f"--workdir={run}", f"--out={out}", "-k", "3", *flags]) == 0
    return pl.read_parquet(out) if out.suffix == ".parquet" else pl.read_csv(out)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(user_lists, "USERS", 20)


def test_the_file_of_all_users_has_their_lists_as_parquet_and_as_csv(
    model, retrieval, tmp_path, small_parts, capsys
):
    table = write(retrieval, tmp_path / "all.parquet", "--users=all")
    assert_close(table, model.recommend_users(k=3))
    text = write(retrieval, tmp_path / "all.csv", "--users=all")
    assert text.drop("score").equals(table.drop("score").cast({"rank": pl.Int64}))
    assert "lists of 64 users in" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "all.parquet"]


def test_a_killed_command_goes_on_with_its_parts_to_the_same_file(
    retrieval, tmp_path, small_parts, monkeypatch
):
    write(retrieval, tmp_path / "whole.parquet", "--users=all")
    computed, killed_after, out = [], 2, tmp_path / "killed.parquet"
    best = user_lists.LogUsers.best

    def counting(self, users, wanted):
        if len(computed) == killed_after:
            raise KeyboardInterrupt
        computed.append(len(users))
        return best(self, users, wanted)

    monkeypatch.setattr(user_lists.LogUsers, "best", counting)
    with pytest.raises(KeyboardInterrupt):
        write(retrieval, out, "--users=all")
    assert not out.exists()
    killed_after = None
    write(retrieval, out, "--users=all")
    assert computed == [20, 20, 20, 4], "the first two parts were there"
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()

    computed.clear()
    killed_after = 1
    with pytest.raises(KeyboardInterrupt):
        write(retrieval, out, "--users=all", f"--deny={denied(tmp_path)}")
    killed_after = None
    write(retrieval, out, "--users=all")
    assert computed == [20, 20, 20, 20, 4], "that part is of other lists"
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_now_is_the_time_of_the_first_start(retrieval, tmp_path, small_parts, monkeypatch):
    asked, out = [], tmp_path / "now.parquet"
    best = user_lists.LogUsers.best

    def told(self, users, wanted):
        if len(asked) == 1:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(wanted.at_time)
        return best(self, users, wanted)

    monkeypatch.setattr(user_lists.LogUsers, "best", told)
    monkeypatch.setattr("time.time", itertools.count(1.9e9).__next__)
    with pytest.raises(KeyboardInterrupt):
        write(retrieval, out, "--users=all", "--at-time=now")
    write(retrieval, out, "--users=all", "--at-time=now")
    assert len(asked) == 5 and len(set(asked)) == 2, asked


def denied(folder):
    (folder / "denied.txt").write_text("i1\ni2\n")
    return folder / "denied.txt"


def test_shards_share_the_users_and_files_of_ids_choose_users_and_items(
    model, retrieval, tmp_path, capsys
):
    shards = [
        write(retrieval, tmp_path / "s.parquet", "--users=all", f"--shard={i}/3") for i in range(3)
    ]
    users = [set(shard["user"]) for shard in shards]
    assert all(users) and sum(map(len, users)) == 64 == len(set().union(*users))
    whole = model.recommend_users(k=3)
    for shard in shards:
        assert_close(shard, whole.filter(pl.col("user").is_in(shard["user"].to_list())))

    pl.DataFrame({"user_id": ["u9", "nobody", "u4"]}).write_csv(tmp_path / "users.csv")
    pl.DataFrame({"x": ["i7", "i9", "i30"]}).write_parquet(tmp_path / "allowed.parquet")
    found = write(
        retrieval,
        tmp_path / "some.parquet",
        f"--users={tmp_path / 'users.csv'}",
        f"--allow={tmp_path / 'allowed.parquet'}",
        f"--deny={denied(tmp_path)}",
        "--exclude-seen=false",
    )
    assert "1 of 3 users are not in the log: left out" in capsys.readouterr().out
    allowed = ["i7", "i9", "i30"]
    chosen = model.recommend_users(["u9", "u4"], 3, exclude_seen=False, allow=allowed)
    assert_close(found, chosen)


def test_two_commands_do_not_write_the_same_file(retrieval, tmp_path):
    parts = tmp_path / "lists.csv.parts"
    with user_lists._only_writer(parts):
        with pytest.raises(ConfigError, match="another process writes these lists"):
            write(retrieval, tmp_path / "lists.csv", "--users=all")


def test_histories_of_a_newer_log_are_those_of_the_file(retrieval, tmp_path):
    lines = (retrieval.parent / "log.csv").read_text()
    lines += "u3,i1,1900000000\nu3,brand-new,1900000001\nfirst,i7,1900000002\nlost,odd,1900000003\n"
    (tmp_path / "newer.csv").write_text(lines)
    newer = gr_jax.load(retrieval, data=tmp_path / "newer.csv")
    users = ["u3", "first", "lost", "u5"]
    assert_same(newer.recommend_users(users, k=4), lists_one_by_one(newer, users, k=4))
    flags = ["--users=all", f"--data={tmp_path / 'newer.csv'}"]
    table = write(retrieval, tmp_path / "newer.parquet", *flags)
    assert table["user"].n_unique() == 66
    assert_close(table, newer.recommend_users(k=3))
    assert newer.user_vectors(["lost", "u3"])["user"].to_list() == ["u3"], "lost has no known item"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--users=all"], "--users=all.FILE and --out=FILE go together"),
        (["--users=all", "--user=u3", "--out=x.csv"], "--user=ID, or --users=all.FILE"),
        (["--users=all", "--out=x.json"], r"x.json: the name .* ends in .parquet or .csv"),
        (["--users=all", "--out=x.csv", "--shard=3/3"], "--shard='3/3': expected I/N"),
        (["--users=no.csv", "--out=x.csv"], "no.csv: no such file"),
        (["--users=all", "--out=x.csv", "--at-time=5"], "at_time=5 is before the last event of"),
        (["--users=all", "--out=/proc/x.csv"], "/proc/x.csv: cannot be written"),
    ],
)
def test_a_wrong_flag_is_one_line(retrieval, flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=told):
        recommend.main([f"--workdir={retrieval}", *flags])


def test_a_file_of_ids_without_a_known_column_or_user_is_told(retrieval, tmp_path):
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    (tmp_path / "none.txt").write_text("x\ny\n")
    for name, told in (("two.csv", "no column 'user' or 'user_id'"), ("none.txt", "the log has")):
        with pytest.raises(ConfigError, match=told):
            write(retrieval, tmp_path / "out.csv", f"--users={tmp_path / name}")
