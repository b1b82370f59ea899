"""Runs that go on from an earlier one, on a newer log."""

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gr_jax
from gr_jax import train
from gr_jax.config import ConfigError
from gr_jax.serving.load import trained_model
from gr_jax.training.checkpoint import Progress
from gr_jax.training.init_from import first_state
from gr_jax.training.objective import is_out_of_patience, objective_of
from gr_jax.training.run import open_trained
from gr_jax.training.tables.admission import catalogue_maker
from tests.tiny_run import assert_same_state, begun, lines_of


@pytest.fixture(scope="module")
def newer(config_file, tmp_path_factory) -> Path:
    """The log without its first users and last items, with new ones that are before all others.

    The users that are left had i38 and i39 as well, and a0 now always follows i5.
    """
    lines = (config_file.parent / "log.csv").read_text().splitlines()
    kept = [line for line in lines if ",i39," not in line and not line.startswith(("u0,", "u1,"))]
    for user in range(3):
        kept += [
            f"a{user},{item},{2 * 10**9 + k}"
            for k, item in enumerate(["i4", "i5", "a0", "i6", "a1", "a2"])
        ]
    file = tmp_path_factory.mktemp("newer") / "log.csv"
    file.write_text("\n".join(kept) + "\n")
    return file


def test_what_the_earlier_run_knew_is_answered_as_it_did_whatever_the_order_of_items(
    finished, newer, tmp_path
):
    run, state = begun(finished, newer, tmp_path / "run")
    ours, theirs = trained_model(run, state.params), gr_jax.load(finished)
    assert ours.version != theirs.version and int(state.step) == 0
    known = [f"i{i}" for i in range(39)]
    for user in ("u5", "u40"):
        history = [event for event in ours.history(user) if event.item in known]
        answers = [model.score(history, known) for model in (ours, theirs)]
        scores = [[item.score for item in answer] for answer in answers]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_new_item_begins_by_its_neighbours_in_training_and_else_as_the_mean_of_all(
    finished, newer, tmp_path
):
    run, state = begun(finished, newer, tmp_path / "run")
    table, theirs = np.asarray(state.params["embeddings"]["item_table"]), item_table(finished)
    then, now = gr_jax.load(finished).dataset.catalogue, run.dataset.catalogue
    mean, likes = theirs[1:41].mean(0), {}
    for user in range(run.dataset.num_users):  # but the last two events, which are held out
        begin, end = run.dataset.events.offsets[user : user + 2]
        raw = now.raw_items(run.dataset.events.item[begin : end - 2])
        for item, other in [*pairwise(raw), *pairwise(raw[::-1])]:
            if other != "a0":
                likes.setdefault(item, []).append(theirs[then.item_ids([other])[0]])
    of_any = np.mean([vector for vectors in likes.values() for vector in vectors], axis=0)
    assert len(likes["a0"]) == 6 and "a1" not in likes
    a0, a1 = table[now.item_ids(["a0", "a1"])]
    expected = mean + 2 * (np.mean(likes["a0"], axis=0) - of_any)
    np.testing.assert_allclose(a0, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(a1, mean, rtol=1e-4, atol=1e-6)
    assert not table[run.dataset.num_items + 1 :].any(), "unused"
    record = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert record["items"] == {"known": 39, "new": 3, "gone": 1}


def item_table(workdir: Path) -> np.ndarray:
    return np.asarray(open_trained(workdir)[1]["embeddings"]["item_table"])


def test_a_continued_run_that_is_interrupted_goes_on_without_the_earlier_one(
    finished, newer, tmp_path, capsys
):
    earlier = Path(shutil.copytree(finished, tmp_path / "earlier"))
    flags = [f"--init-from={earlier}", f"--data={newer}", "--report=false"]
    flags += [f"--config.data.prepared={tmp_path / 'prepared'}", "--config.train.epochs=2"]
    assert train.main([*flags, f"--workdir={tmp_path / 'whole'}"]) == 0
    said = capsys.readouterr().out
    assert f"from    {earlier}, step 24: 39 items are known, 3 new" in said
    assert said.splitlines()[0] == f"run     {tmp_path / 'whole'}"
    assert "done    after" in said.splitlines()[-1]
    parts = [*flags, f"--workdir={tmp_path / 'parts'}"]
    assert train.main([*parts, "--config.train.steps=5"]) == 0
    shutil.rmtree(earlier)
    assert train.main([*parts, "--config.train.steps=0"]) == 0
    assert "resuming" in capsys.readouterr().out
    assert_same_state(tmp_path / "parts", tmp_path / "whole")
    result = json.loads((tmp_path / "parts" / "result.json").read_text())
    assert result["init_from"]["workdir"] == str(earlier) and result["init_from"]["step"] == 24
    first = [lines_of(workdir, "train")[0]["loss"] for workdir in (tmp_path / "parts", finished)]
    assert first[0] < first[1]


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"model": {"width": 32}}, "config.model.width is 16 there and 32 here"),
        ({"model": {"num_blocks": 2}}, "config.model.num_blocks is 1 there and 2 here"),
        ({"model": {"kind": "sasrec"}}, "config.model.kind is 'hstu' there and 'sasrec' here"),
        ({"data": {"max_length": 8}}, "config.data.max_length is 16 there and 8 here"),
        ({"vocabulary": {"kind": "hashed", "rows": 9}}, "config.vocabulary.kind is 'catalogue'"),
    ],
)
def test_a_parameter_that_does_not_fit_is_one_line_that_names_the_field(
    finished, newer, tmp_path, groups, told
):
    with pytest.raises(ConfigError, match=told) as error:
        begun(finished, newer, tmp_path / "run", **groups)
    assert str(error.value).startswith(f"train.init_from={finished}: ")


def test_a_folder_to_begin_from_that_cannot_be_is_one_line(finished, newer, tmp_path):
    flags = [f"--data={newer}", "--report=false"]
    for folder, workdir, told in (
        (tmp_path, tmp_path / "run", "holds no run"),
        (finished, finished, "is the folder of this run: choose a --workdir"),
    ):
        with pytest.raises(ConfigError, match=told):
            train.main([f"--init-from={folder}", f"--workdir={workdir}", *flags])
    with pytest.raises(ConfigError, match="must be given"):
        train.main([f"--init-from={finished}", *flags, "--config=configs/synthetic.py"])


def test_half_of_the_patience_ends_a_run_that_begins_near_its_best(finished, newer, tmp_path):
    run, _ = begun(finished, newer, tmp_path / "run")
    for patience, init_from, enough in ((3, "earlier", 2), (4, "earlier", 2), (3, "", 3)):
        train = dataclasses.replace(run.config.train, patience=patience, init_from=init_from)
        config = dataclasses.replace(run.config, train=train)
        objective = objective_of(dataclasses.replace(run, config=config))
        over = [is_out_of_patience(objective, Progress(stale=stale)) for stale in range(5)]
        assert over == [stale >= enough for stale in range(5)]


def test_hashed_entries_are_those_of_the_same_raw_ids(config_file, newer, tmp_path):
    hashed = ["--config.vocabulary.kind=hashed", "--config.vocabulary.rows=9"]
    flags = [f"--config={config_file}", f"--workdir={tmp_path / 'earlier'}", "--report=false"]
    assert train.main([*flags, *hashed, "--config.train.steps=2"]) == 0
    run, state = begun(tmp_path / "earlier", newer, tmp_path / "run")
    ours = catalogue_maker(run.mesh)(state)["embeddings"]
    theirs, raw = item_table(tmp_path / "earlier"), [f"i{i}" for i in range(39)]
    before = gr_jax.load(tmp_path / "earlier").dataset.catalogue.item_ids(raw)
    np.testing.assert_allclose(
        np.asarray(ours["item_table"])[run.dataset.catalogue.item_ids(raw)], theirs[before]
    )
    other = dataclasses.replace(run.config, seed=1)
    with pytest.raises(ConfigError, match="config.seed is 0 there and 1 here"):
        run = dataclasses.replace(run, config=other)
        first_state(run, run.planned_state())
