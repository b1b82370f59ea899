import json

import pytest

import gr_jax
from gr_jax import recommend
from gr_jax.config import ConfigError


def test_the_table_has_titles_ids_and_scores_of_what_load_recommends(retrieval, capsys):
    assert recommend.main([f"--workdir={retrieval}", "--user=u3", "-k", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user u3, 14 events"
    loaded = gr_jax.load(retrieval)
    rows = [
        (item.title, item.item, f"{item.score:.4f}")
        for item in loaded.recommend(loaded.history("u3"), 4)
    ]
    assert [tuple(line.rsplit(maxsplit=2)) for line in lines[4:]] == rows
    assert lines[2].split() == ["title", "item", "score"]


def test_items_of_the_history_come_when_asked_for(retrieval, capsys):
    told = {}
    for seen in ("judged", "false", "true"):
        assert (
            recommend.main(
                [
                    f"--workdir={retrieval}",
                    "--user=u3",
                    "-k",
                    "40",
                    "--json",
                    f"--exclude-seen={seen}",
                ]
            )
            == 0
        )
        told[seen] = len(json.loads(capsys.readouterr().out)["items"])
    assert told == {"judged": 26, "false": 40, "true": 26}


def test_json_holds_the_same(retrieval, capsys):
    assert (
        recommend.main([f"--workdir={retrieval}", "--user=u3", "--k=2", "--json", "--at-time=now"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (
        told["user"] == "u3"
        and told["events"] == 14
        and told["source"] == "model"
        and told["skipped"] == 0
    )
    assert [set(item) for item in told["items"]] == [{"item", "title", "score", "tasks"}] * 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--user=nobody"], "no user 'nobody' in .*: its users are u0, u1, u10"),
        (["--user=u3", "--at-time=soon"], "at_time is 'soon': expected unix seconds"),
        (["--user=u3", "--at-time=nan"], "at_time is nan: expected unix seconds"),
        (["--user=u3", "--at-time=2001-99-01"], "at_time is '2001-99-01': expected unix seconds"),
        (["--user=u3", "--user=u4"], "--user is given twice, as 'u3' and 'u4'"),
        (["--user=u3", "--k=0"], "k=0: must be an integer of at least 1"),
        (["--user=u3", "--task=liked"], "task='liked': the tasks are none"),
        (["--user=u3", "--at-time=5"], "at_time=5 is before the last event"),
        ([], "--user=ID, or --users=all.FILE"),
    ],
)
def test_a_mistake_is_one_line(retrieval, flags, told):
    with pytest.raises(ValueError, match=told):
        recommend.main([f"--workdir={retrieval}", *flags])


@pytest.fixture
def newer(retrieval, tmp_path):
    """The log of the run a day later: more of u3, one of it of a new item, and a new user."""
    lines = (retrieval.parent / "log.csv").read_text()
    lines += "u3,i1,1900000000\nu3,brand-new,1900000001\nfirst-timer,i7,1900000002\n"
    (tmp_path / "newer.csv").write_text(lines)
    return tmp_path / "newer.csv"


def told(capsys, *flags: str) -> dict:
    assert recommend.main([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_histories_are_those_of_a_newer_log_if_one_is_given(retrieval, newer, capsys):
    run = f"--workdir={retrieval}"
    before = told(capsys, run, "--user=u3")
    now = told(capsys, run, "--user=u3", f"--data={newer}")
    assert (before["events"], now["events"], now["skipped"]) == (14, 16, 1)
    assert "i1" not in [item["item"] for item in now["items"]]
    model = gr_jax.load(retrieval)
    last = [("i1", 1900000000), ("brand-new", 1900000001)]
    expected = model.recommend([*model.history("u3"), *last], user="u3")
    assert [item["item"] for item in now["items"]] == [item.item for item in expected]
    assert told(capsys, run, "--user=first-timer", f"--data={newer}")["source"] == "model"
    assert recommend.main([run, "--user=u3", f"--data={newer}"]) == 0
    assert capsys.readouterr().out.startswith("user u3, 16 events, 1 of them of unknown items\n")


def test_a_request_for_a_user_is_answered_from_the_newer_log(retrieval, newer):
    model = gr_jax.load(retrieval, data=newer)
    asked = model.answer([model.query(None, user="u3")])
    assert asked == [model.recommend(model.history("u3"), user="u3")]
    assert asked[0].skipped == 1


def test_a_newer_log_that_is_not_there_is_one_line(retrieval, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        recommend.main([f"--workdir={retrieval}", "--user=u3", f"--data={tmp_path / 'no.csv'}"])


def test_the_time_asked_about_may_be_iso_text(retrieval, capsys):
    told = []
    for at_time in ("1893456000", "2030-01-01", "2030-01-01T01:00:00.5+01:00"):
        command = [f"--workdir={retrieval}", "--user=u3", "--json", f"--at-time={at_time}"]
        assert recommend.main(command) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        recommend.main([f"--workdir={tmp_path}", "--user=1"])
