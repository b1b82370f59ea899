import json
import shutil
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType

import jax
import numpy as np
import pytest

import gr_jax
from gr_jax import evaluate
from gr_jax.config import ConfigError, RankingConfig
from gr_jax.data.batches import ranking as ranking_rows
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.serving import load
from gr_jax.serving.history import RequestError
from gr_jax.serving.moments import moment
from gr_jax.training.ranking.evaluation import predict_all
from gr_jax.training.retrieval import metrics
from tests.serving.conftest import RANKING, trained


@pytest.fixture(scope="module")
def loaded(retrieval):
    return gr_jax.load(retrieval)


@pytest.fixture(scope="module")
def ranker(ranking):
    return gr_jax.load(ranking)


def items(answer) -> list[str]:
    return [item.item for item in answer]


def test_the_rank_of_the_test_target_is_the_one_of_the_evaluation(loaded, retrieval):
    users = loaded.dataset.catalogue.users["raw"].to_list()
    logs = [loaded.history(user) for user in users]
    answers = loaded.recommend(
        [log[:-1] for log in logs], k=40, at_time=[log[-1].time for log in logs]
    )
    ranks = []
    for log, answer in zip(logs, answers, strict=True):
        score = {item.item: item.score for item in answer}
        ranks.append(sum(value >= score[log[-1].item] for value in score.values()))
    expected = evaluate.evaluate(retrieval, "test")
    assert len(set(ranks)) > 5
    found = metrics.rank_means(np.array(ranks))
    assert found == pytest.approx({name: expected[name] for name in found})


def test_a_list_of_histories_gives_the_answers_of_each_alone(loaded):
    histories = [loaded.history("u1")[:3], [], loaded.history("u2"), loaded.history("u3")[:1]]
    together = loaded.recommend(histories, k=4)
    for history, answer in zip(histories, together, strict=True):
        alone = loaded.recommend(history, k=4)
        assert items(answer) == items(alone)
        np.testing.assert_allclose([i.score for i in answer], [i.score for i in alone], atol=1e-6)


def test_scores_are_those_that_recommend_orders_by(loaded):
    history = loaded.history("u4")[:5]
    best = loaded.recommend(history, k=6)
    scored = loaded.score(history, list(reversed(items(best))))
    assert items(scored) == items(best)[::-1]
    np.testing.assert_allclose([i.score for i in scored][::-1], [i.score for i in best], atol=1e-6)


def test_items_have_their_titles(loaded):
    answer = loaded.recommend([("i3", 10**9)], k=2)
    assert [item.title for item in answer] == [f"Film {item.item}" for item in answer]


def test_the_time_asked_about_counts_and_is_that_of_the_last_event_by_default(loaded):
    history = loaded.history("u5")[:4]
    last = history[-1].time
    assert loaded.recommend(history, at_time=last) == loaded.recommend(history)
    assert loaded.recommend(history, at_time=last + 10**7) != loaded.recommend(history)
    assert len(loaded.recommend(history, at_time="now")) == 10


def test_seen_denied_and_not_allowed_items_do_not_come(loaded):
    history = [("i1", 10**9), ("i2", 10**9 + 5)]
    assert not {"i1", "i2"} & set(items(loaded.recommend(history, k=40)))
    assert len(loaded.recommend(history, k=40)) == 38
    assert len(loaded.recommend(history, k=40, exclude_seen=False)) == 40
    assert set(items(loaded.recommend(history, k=40, deny=["i3", "not there"]))) == {
        f"i{i}" for i in range(40) if i not in (1, 2, 3)
    }
    full = items(loaded.recommend(history, k=40))
    assert items(loaded.recommend(history, k=40, allow=["i7", "i2", "i9"])) == [
        i for i in full if i in ("i7", "i9")
    ]


def test_a_run_judged_with_repeats_recommends_them_unless_told_otherwise(retrieval, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(retrieval, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["evaluate"]["exclude"] = "none"
    (workdir / "config.json").write_text(json.dumps(config))
    loaded, history = gr_jax.load(workdir), [("i1", 10**9), ("i2", 10**9 + 5)]
    assert len(loaded.recommend(history, k=40)) == 40
    assert len(loaded.recommend(history, k=40, exclude_seen=True)) == 38


def test_without_a_history_it_is_all_that_the_log_has_of_the_user(loaded, ranker):
    for model in (loaded, ranker):
        ours, theirs = (
            model.query(None, user="u3").history,
            model.query(model.history("u3"), user="u3").history,
        )
        for name in ("item", "time", "action"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.user, ours.at_time, ours.skipped) == (theirs.user, theirs.at_time, 0)
    with pytest.raises(ConfigError, match="no user 'x' in"):
        loaded.query(None, user="x")
    with pytest.raises(RequestError, match="at_time=5 is before the last event"):
        loaded.query(None, user="u3", at_time=5)


def test_events_within_a_second_are_ordered_by_their_full_times(loaded):
    """In any order and form, and those of the same time in the order given, as in the log."""
    second, names = 10**9, ("i7", "i21", "i3", "i30")
    expected = loaded.recommend([(name, second) for name in names], k=30)
    assert expected != loaded.recommend([(name, second) for name in names[::-1]], k=30)
    start = datetime.fromtimestamp(second, UTC)
    parts = (0.01, 0.25, 0.25, 0.48)
    forms = {
        "float": [second + part for part in parts],
        "numpy": [np.float64(second + part) for part in parts],
        "datetime": [start + timedelta(seconds=part) for part in parts],
        "naive": [(start + timedelta(seconds=part)).replace(tzinfo=None) for part in parts],
        "datetime64": [
            np.datetime64(second, "s") + np.timedelta64(round(part * 1e9), "ns") for part in parts
        ],
        "ISO text": [(start + timedelta(seconds=part)).isoformat() for part in parts],
    }
    for form, times in forms.items():
        events = list(zip(names, times, strict=True))
        for order in ([3, 1, 2, 0], [1, 0, 3, 2], [0, 1, 2, 3]):  # 1 before 2: they are a tie
            asked = [events[i] for i in order]
            assert loaded.recommend(asked, k=30) == expected, form
            assert loaded.query(asked).history.time.tolist() == [second] * 4


def test_times_of_all_forms_mean_the_same(loaded):
    history = [("i1", 10**9), ("i2", 10**9 + 86_400)]
    day = datetime.fromtimestamp(10**9 + 10 * 86_400, UTC).date()
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    expected = loaded.recommend(history, at_time=midnight.timestamp())
    assert expected != loaded.recommend(history)
    zone = timedelta(hours=5, minutes=30)
    for at_time in (
        day,
        midnight,
        midnight.replace(tzinfo=None),
        np.datetime64(day),
        day.isoformat(),
        f"{day}T00:00Z",
        f"{day} 05:30:00.0+05:30",
        f"{midnight + zone:%Y-%m-%dT%H:%M:%S}+0530",
        f"{day}T00:00:00.999999999Z",  # cut to the second
    ):
        assert loaded.recommend(history, at_time=at_time) == expected, at_time


def test_a_time_of_pandas_keeps_its_nanoseconds():
    class Timestamp(datetime):  # as pandas has it, a datetime with nanoseconds
        nanosecond = 7

    assert moment(Timestamp(2001, 9, 9, 1, 46, 40, 5, tzinfo=UTC)) == (10**9, 5.007e-6)


def test_unknown_items_of_a_history_are_skipped_and_counted(loaded):
    history = loaded.history("u6")[:3]
    answer = loaded.recommend([("gone", 10**9 - 5), *history, ("new", history[-1].time)])
    assert answer.skipped == 2
    assert answer.items == loaded.recommend(history).items


def test_without_a_known_item_the_answer_is_popularity_and_says_so(loaded):
    counts = loaded.dataset.catalogue.items.with_columns(count=loaded.popularity[1:])
    top = counts.sort("count", descending=True, maintain_order=True)["raw"].to_list()
    assert items(loaded.recommend([], k=5)) == top[:5]
    assert loaded.recommend([], k=5).source == "popularity"
    assert items(loaded.recommend([("gone", 10**9)], k=5, deny=top[:1])) == top[1:6]
    assert loaded.score([], [top[0]]).items[0].score == pytest.approx(
        counts["count"].max() / loaded.dataset.num_events
    )
    assert loaded.recommend(loaded.history("u1")[:2]).source == "model"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda m: m.score([("i1", 5)], ["i2", "x", "y"]), "unknown items: 'x', 'y'$"),
        (lambda m: m.score([("i1", 5)], [f"x{i}" for i in range(9)]), "'x4' and 4 more"),
        (lambda m: m.recommend([("i1", 5)], allow=["x"]), "unknown items: 'x'"),
        (lambda m: m.recommend([("i1", -5)]), "an event's time is -5: expected unix seconds"),
        (lambda m: m.recommend([("i1", float("nan"))]), "an event's time is nan"),
        (lambda m: m.recommend([("i1", 10**12)]), "expected unix seconds"),
        (lambda m: m.recommend([("i1", 50)], at_time=49), "at_time=49 is before the last event"),
        (lambda m: m.recommend([("i1", 50)], k=0), "k=0: must be"),
        (lambda m: m.recommend(["i1", "i2"]), "an event is"),
        (lambda m: m.recommend([("i1", 50, "bought")]), "no action 'bought' in the log, only none"),
        (
            lambda m: m.recommend([("i1", 50)], task="liked"),
            "the tasks are none: it is a retrieval run",
        ),
        (lambda m: m.recommend([("i1", True)]), "an event's time is True: expected unix"),
        (lambda m: m.recommend([("i1", None)]), "an event's time is None"),
        (lambda m: m.recommend([("i1", "50")]), "an event's time is '50'"),
        (lambda m: m.recommend([("i1", "2001-02-30")]), "an event's time is '2001-02-30'"),
        (lambda m: m.recommend([("i1", timedelta(5))]), "an event's time is datetime.timedelta"),
        (lambda m: m.recommend([("i1", np.float32(5))]), "an event's time is np.float32"),
        (lambda m: m.recommend([("i1", np.timedelta64(5, "s"))]), "an event's time is np.timede"),
        (lambda m: m.recommend([("i1", np.datetime64("NaT"))]), "an event's time is np.datetime64"),
        (lambda m: m.recommend([("i1", date(2200, 1, 1))]), "an event's time is datetime.date"),
        (lambda m: m.recommend([("i1", 50)], at_time="soon"), "at_time is 'soon'"),
        (lambda m: m.recommend([("i1", 50)], at_time=True), "at_time is True"),
        (lambda m: m.recommend([("i1", 50)], deny="i2"), "deny='i2': expected a list of items"),
        (lambda m: m.recommend([("i1", 50)], deny=b"i2"), "deny=b'i2': expected a list"),
        (lambda m: m.recommend([("i1", 50)], deny=5), "deny=5: expected a list"),
        (lambda m: m.recommend([("i1", 50)], deny={"i2": 1}), "deny={'i2': 1}: expected a list"),
        (lambda m: m.recommend([("i1", 50)], deny=MappingProxyType({})), "deny=mappingproxy"),
        (lambda m: m.recommend([("i1", 50)], deny=[["i2"]]), r"deny: an item is \['i2'\]"),
        (lambda m: m.recommend([("i1", 50)], deny=[5.0]), "deny: an item is 5.0: expected text"),
        (lambda m: m.recommend([("i1", 50)], deny=[None]), "deny: an item is None"),
        (lambda m: m.recommend([("i1", 50)], allow="i2"), "allow='i2': expected a list of items"),
        (lambda m: m.recommend([("i1", 50)], allow=[True]), "allow: an item is True"),
        (lambda m: m.score([("i1", 50)], "i2"), "candidates='i2': expected a list of items"),
        (lambda m: m.score([("i1", 50)], 5), "candidates=5: expected a list"),
        (lambda m: m.score([[("i1", 50)]], [["i2"], ["i2"]]), "candidates: 2 of them for 1"),
        (lambda m: m.score([[("i1", 5)], []], [["i2"], "i2"]), "candidates='i2': expected a list"),
        (lambda m: m.recommend("i1"), "history='i1': expected a list of"),
        (lambda m: m.recommend(None), "history=None: expected a list of"),
        (lambda m: m.recommend({"i1": 50}), "history={'i1': 50}: expected a list of"),
        (lambda m: m.recommend(("i1", 50)), "an event is .*, not 'i1'"),
        (lambda m: m.recommend([(None, 50)]), "an event's item is None: expected text"),
        (lambda m: m.recommend([(7.0, 50)]), "an event's item is 7.0: expected text"),
        (lambda m: m.recommend([("i1", 50, 1)]), "action=1: expected a list of names"),
        (lambda m: m.recommend([("i1", 50, False)]), "action=False: expected a list of names"),
        (lambda m: m.recommend([("i1", 50)], user=["u1"]), r"user is \['u1'\]: expected text"),
        (lambda m: m.recommend([("i1", 50)], user=1.0), "user is 1.0: expected text"),
        (lambda m: m.recommend([("i1", 50)], k="5"), "k='5': must be an integer"),
        (lambda m: m.recommend([("i1", 50)], task=["x"]), r"task=\['x'\]: the tasks are none"),
        (lambda m: m.recommend([("i1", 50)], exclude_seen="false"), "exclude_seen='false': must"),
        (
            lambda m: m.recommend([[("i1", 50)], []], at_time=[1]),
            "at_time: 1 of them for 2 histories",
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_in_one_line(loaded, ask, told):
    with pytest.raises(RequestError, match=told) as caught:
        ask(loaded)
    assert "\n" not in str(caught.value)


def test_of_what_cannot_be_answered_an_error_repeats_a_hundred_characters(loaded):
    long = "x" * 10**5
    for ask in (
        lambda: loaded.score([("i1", 5)], [long] * 3),
        lambda: loaded.recommend([("i1", long)]),
        lambda: loaded.recommend([("i1", 5, long)]),
        lambda: loaded.recommend([long]),
        lambda: loaded.recommend([("i1", 5)], deny=long),
        lambda: loaded.recommend([("i1", 5)], task=long),
        lambda: loaded.recommend([("i1", 5)], k=10**5000 * -1),
        lambda: loaded.recommend([("i1", 10**5000)]),
    ):
        with pytest.raises(RequestError) as caught:
            ask()
        assert len(str(caught.value)) < 600


def test_a_generator_of_items_holds_for_every_history(loaded):
    histories = [[("i1", 10**9)], [("i2", 10**9)]]
    for answer in loaded.recommend(histories, k=40, deny=(f"i{i}" for i in range(30))):
        assert not {f"i{i}" for i in range(30)} & set(items(answer))
    assert len(loaded.recommend([("i1", 10**9)], k=10**30)) == 39


def predictions(loaded, workdir, users: int) -> tuple[list, list]:
    """Of each user's last events: what the model says by the evaluation, and by `score`."""
    from gr_jax.training.run import open_trained

    run, params = open_trained(workdir)
    predict = jax.jit(lambda batch: load.predictions(run.graphdef, params, batch))
    low = int(np.quantile(run.dataset.events.timestamp, 0.3))
    rows = ranking_rows.label_batches(
        run.dataset, run.config, run.scheme, low, 2**40, device_multiple=1
    )
    judged, labels = predict_all(lambda batch: predict(batch).reshape(-1, 2), rows, run)
    ours, theirs = [], []
    for prediction, user, before in zip(judged, labels.user, labels.history, strict=True):
        if (
            user < users and before < 6
        ):  # the evaluation then sees all that was before, as serving does
            name = run.dataset.catalogue.raw_users(np.array([user]))[0]
            log = loaded.history(name)
            event = log[before]
            answer = loaded.score(
                log[:before], [event.item, "i7", "i8"], at_time=event.time, user=name
            )
            ours.append(list(answer.items[0].tasks.values()))
            theirs.append(prediction)
    return ours, theirs


@pytest.mark.parametrize("variant", ["interleave", "paired", "sum"])
def test_a_candidate_is_judged_as_the_evaluation_judges_the_event(
    ranking_folder, ranking, ranker, variant
):
    if variant != "interleave":
        workdir = trained(ranking_folder, RANKING, variant)
        ours, theirs = predictions(gr_jax.load(workdir), workdir, users=48)
    else:
        ours, theirs = predictions(ranker, ranking, users=48)
    assert len(ours) > 10
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_ranking_orders_the_catalogue_by_the_task_asked_for(ranker):
    history = ranker.history("u1")[:5]
    by_liked, by_rating = (
        ranker.recommend(history, k=30),
        ranker.recommend(history, k=30, task="rating"),
    )
    for answer, task in ((by_liked, "liked"), (by_rating, "rating")):
        values = [item.tasks[task] for item in answer]
        assert values == sorted(values, reverse=True) and values == [item.score for item in answer]
        assert len(answer) == 20 - len({event.item for event in history})
    assert {i.item for i in by_liked} == {i.item for i in by_rating}


def test_what_happened_and_who_it_is_change_the_predictions(ranker):
    history = [("i2", 10**9, "liked"), ("i4", 10**9 + 60, ["liked"])]
    base = ranker.score(history, ["i6"])
    assert ranker.score([(*event[:2], ()) for event in history], ["i6"]).items != base.items
    assert ranker.score(history, ["i6"], user="u1").items != base.items
    assert ranker.score(history, ["i6"], user="nobody").items == base.items
    assert (
        ranker.score([(*event[:2], ["seen", "liked"]) for event in history], ["i6"]).items
        == base.items
    )


def test_a_score_does_not_depend_on_the_other_candidates_or_users(ranker):
    one, other = ranker.history("u1")[:7], ranker.history("u2")[:3]
    wanted = [f"i{i}" for i in range(20)] * 2  # more than one block
    answers = ranker.score([one, other, []], [wanted, ["i3"], ["i4", "i5"]])
    assert [len(answer) for answer in answers] == [40, 1, 2]
    alone = ranker.score(one, ["i13"])
    for place in (13, 33):
        assert answers[0].items[place].score == pytest.approx(alone.items[0].score, abs=1e-5)
    assert answers[2].source == "model"


def test_a_history_that_grew_is_answered_from_the_cache_as_from_its_first_event(ranker, ranking):
    log = ranker.history("u5")
    before = ranker.cache.counters
    fresh = gr_jax.load(ranking, cache_mb=0)
    for length in (3, 4, 6, 6):
        at_time = log[length].time
        grown = ranker.score(log[:length], ["i1", "i2"], at_time=at_time, user="u5")
        anew = fresh.score(log[:length], ["i1", "i2"], at_time=at_time, user="u5")
        np.testing.assert_allclose([i.score for i in grown], [i.score for i in anew], atol=1e-5)
    after, nothing = ranker.cache.counters, fresh.cache.counters
    assert (
        after.misses - before.misses <= 2 and after.hits - before.hits >= 2
    )  # a series entry may come in between
    assert nothing.hits == 0 and nothing.bytes == 0


def test_the_baseline_of_ranking_predicts_what_its_evaluation_does(ranking_folder, result_of):
    workdir = trained(ranking_folder, RANKING, "dlrm")
    model = gr_jax.load(workdir)
    low = time_bounds(
        model.dataset.events.timestamp, RankingConfig(valid_from=0.7, test_from=0.85)
    )["test"][0]
    losses = []
    for user in model.dataset.catalogue.users["raw"]:
        log = model.history(user)
        asked = [i for i, event in enumerate(log) if event.time >= low]
        histories, times = [log[:i] for i in asked], [log[i].time for i in asked]
        answers = model.score(
            histories, [[log[i].item, "i1"] for i in asked], at_time=times, user=user
        )
        for i, answer in zip(asked, answers, strict=True):
            liked = "liked" in log[i].action
            losses.append(-np.log(answer.items[0].score if liked else 1 - answer.items[0].score))
    assert np.mean(losses) == pytest.approx(result_of(workdir)["test"]["log_loss/liked"], abs=1e-5)


def broken(workdir, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    damage(copy)
    return copy


def cut_arrays(copy):
    for file in (copy / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])


def told_otherwise(copy, **values):
    file = copy / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda w: (w / "config.json").unlink(), "holds no run .no config.json."),
        (lambda w: (w / "config.json").write_text('{"seed": '), "config.json:1: not JSON"),
        (lambda w: shutil.rmtree(w / "checkpoints"), "no validated checkpoint yet"),
        (
            lambda w: [shutil.rmtree(p) for p in (w / "checkpoints").iterdir() if p.is_dir()],
            "no validated checkpoint",
        ),
        (cut_arrays, r"no readable checkpoint in .* \(.+\)"),
        (lambda w: (w / "dataset.json").write_text("{"), "dataset.json: damaged"),
        (
            lambda w: told_otherwise(w, num_items=41, hash="0"),
            "the run in .* was trained on .num_items is 40, was 41",
        ),
        (
            lambda w: told_otherwise(w, hash="0"),
            "as many users, items and events, but not the same.*put the old one back",
        ),
    ],
)
def test_a_damaged_workdir_is_refused_with_the_reason(retrieval, tmp_path, damage, told):
    copy = broken(retrieval, tmp_path, damage)
    had_checkpoints = (copy / "checkpoints").exists()
    with pytest.raises(ConfigError, match=told):
        gr_jax.load(copy)
    assert (copy / "checkpoints").exists() == had_checkpoints, "a look makes no folder"


@pytest.mark.parametrize("cache_mb", [float("nan"), float("inf"), -1, 1e300])
def test_a_size_of_the_cache_that_cannot_be_is_told(retrieval, cache_mb):
    with pytest.raises(ConfigError, match="cache_mb=.*: must be at least 0"):
        gr_jax.load(retrieval, cache_mb=cache_mb)


def test_a_folder_that_does_not_exist_is_refused_and_not_made(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        gr_jax.load(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
