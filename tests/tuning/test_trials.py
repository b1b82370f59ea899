"""Trials that train nothing: a stand-in for the training says how good each setting is."""

import threading

import pytest

pytest.importorskip("optuna")

from gr_jax.config import Config, ConfigError  # noqa: E402
from gr_jax.tuning import outcome, trials  # noqa: E402
from gr_jax.tuning.space import parse  # noqa: E402

SEARCH = ("model.width=8:64", "optimizer.learning_rate=1e-4:1e-1:log")


class Killed(BaseException):
    """The process ends here."""


class FakeTraining:
    """A run of five epochs that is the better the nearer its width is to 40."""

    def __init__(self, killed_at: int = -1):
        self.begun, self.killed_at, self.epochs = [], killed_at, 0

    def __call__(self, config, workdir, *, judge=None):
        self.begun.append(workdir.name)
        if config.model.width < 12:
            raise ConfigError("too narrow")
        for epoch in range(1, 6):
            self.epochs += 1
            if self.epochs == self.killed_at:
                raise Killed
            if judge(epoch, epoch / 5 - abs(config.model.width - 40) / 100):
                break
        return 0


@pytest.fixture
def sweep_of(tmp_path, monkeypatch):
    """`sweep_of(training, search)`: the sweep in one folder, opened anew."""

    def open_sweep(training, search=SEARCH):
        monkeypatch.setattr(trials, "train", training)
        study = trials.open_study(tmp_path)
        return trials.Sweep(tmp_path, Config(), parse(search, Config()), study)

    return open_sweep


def test_a_sweep_whose_process_was_killed_goes_on_with_the_trial_that_it_was_in(sweep_of):
    training = FakeTraining(killed_at=8)
    with pytest.raises(Killed):
        trials.run_all(sweep_of(training), 6)
    was = trials.outcomes(sweep_of(training))[-1]
    assert was.state == "running" and was.number == 1
    assert trials.run_all(sweep_of(training), 6) == 0
    assert training.begun == ["trial-0", "trial-1", *(f"trial-{n}" for n in range(1, 6))]
    now = trials.outcomes(sweep_of(training))
    assert now[1].settings == was.settings and now[1].state in ("complete", "failed")
    assert trials.run_all(sweep_of(training), 6) == 0 and len(training.begun) == 7
    assert trials.run_all(sweep_of(training), 8) == 0 and len(training.begun) == 9


def test_trials_below_the_median_end_early_and_one_that_cannot_be_fails(sweep_of):
    training = FakeTraining()
    sweep = sweep_of(training, ("model.width=38,40,42,39,41,20,10",))
    assert trials.run_all(sweep, 100) == 0
    found = {one.settings["model.width"]: one for one in trials.outcomes(sweep)}
    assert len(found) == 7, "each choice once, however many trials are allowed"
    assert found["20"].state == "pruned" and max(found["20"].scores) < 5
    assert found["10"].state == "failed"
    assert trials.best(sweep).settings == {"model.width": "40"}
    lines = outcome.table_of(sweep).splitlines()
    assert len(lines) == 9 and lines[2].split()[-1] == "40"
    assert outcome.draw(sweep).read_bytes()[:4] == b"\x89PNG"


def test_processes_at_the_same_store_share_the_trials(sweep_of):
    training = FakeTraining()
    sweeps = [sweep_of(training) for _ in range(3)]
    workers = [threading.Thread(target=trials.run_all, args=(sweep, 9)) for sweep in sweeps]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(training.begun) == [f"trial-{n}" for n in range(9)]
    assert trials.count_running(sweeps[0]) == 0


def test_a_sweep_without_a_trial_that_ends_says_why(sweep_of):
    sweep = sweep_of(FakeTraining(), ("model.width=8:11",))
    assert trials.run_all(sweep, 2) == 0
    with pytest.raises(ConfigError, match="no trial went to its end; the last: too narrow"):
        trials.best(sweep)


def test_without_optuna_or_with_another_file_in_its_place_one_line_says_so(tmp_path, monkeypatch):
    (tmp_path / trials.STORE).write_text("not a database" * 100)
    with pytest.raises(ConfigError, match="sweep.db: not a store of Optuna"):
        trials.open_study(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'gr-jax\[sweep\]'"):
        trials.open_study(tmp_path)
