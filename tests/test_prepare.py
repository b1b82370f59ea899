"""The command: a summary and exit code 0, or one line on stderr and no dataset."""

import subprocess
import sys
from pathlib import Path

import pytest

from gr_jax import cli, prepare
from gr_jax.data.dataset import open_dataset


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    rows = "who,what,when\na,x,1318896000\na,y,1318982400\nb,x,nine\n"
    (tmp_path / "clicks.csv").write_text(rows)
    return tmp_path / "clicks.csv"


OWN = ["--user-column=who", "--item-column=what", "--time-column=when"]


def run(monkeypatch, argv: list[str]) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["prepare", *argv])
    with pytest.raises(SystemExit) as exit:
        cli.run(prepare.main)
    return exit.value.code  # type: ignore[return-value]


def test_a_raw_log_becomes_a_dataset_and_a_summary(clicks, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = ["--source=csv", f"--path={clicks}", f"--out={out}", "--on-bad-row=skip", *OWN]
    assert run(monkeypatch, argv) == 0
    shown = {line[:17].strip(): line[17:].strip() for line in capsys.readouterr().out.splitlines()}
    assert shown.pop("seconds")
    assert shown == {
        "source": "csv",
        "users": "1",
        "items": "2",
        "events": "2",
        "events a user": "mean 2.0, median 2, max 2",
        "time": "2011-10-18 to 2011-10-19",
        "bad rows skipped": "1 (time is not a number)",
        "folder": str(out),
    }
    assert open_dataset(out).num_events == 2


def test_the_summary_tells_actions_with_their_rate_and_features_with_their_values(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,stars\na,x,1,5\na,y,2,1\nb,x,3,4\n"
    )
    (tmp_path / "who.csv").write_text("user_id,sex,age\na,F,30\nb,M,30\nc,M,40\n")
    (tmp_path / "what.csv").write_text("item_id,tag\nx,red|blue\ny,red\n")
    (tmp_path / "moves.csv").write_text("user_id,timestamp,country\na,1,de\na,2,us\na,3,us\n")
    argv = [
        "--source=csv",
        f"--path={tmp_path}/log.csv",
        f"--out={tmp_path}/out",
        "--series=country=moves.csv",
    ]
    argv += ["--actions=seen=1, liked=stars>=4", "--user-file=who.csv", "--user-features=sex,age"]
    assert run(monkeypatch, [*argv, "--item-file=what.csv", "--item-features=tag"]) == 0
    shown = {line[:17].strip(): line[17:].strip() for line in capsys.readouterr().out.splitlines()}
    expected = {
        "actions": "seen 100 %, liked 66.67 %",
        "user features": "sex (2 values), age (1 values)",
        "item features": "tag (2 values)",
        "series": "country (2 values): 2 entries",
        "bad rows skipped": "1 (user without events in who.csv)",
        "missing": "1 users not in moves.csv",
    }
    assert {name: shown[name] for name in expected} == expected


def test_a_config_file_with_overrides_and_flags_on_top(clicks, tmp_path, monkeypatch, capsys):
    file = tmp_path / "own.py"
    file.write_text(
        "from gr_jax.config import Config, DataConfig\n"
        "def get_config():\n"
        f"    data = DataConfig(path={str(clicks)!r}, user_column='who', item_column='what')\n"
        "    return Config(data=data)\n"
    )
    argv = [f"--config={file}", "--config.data.time_column=when", f"--out={tmp_path / 'out'}"]
    assert run(monkeypatch, argv) == 2
    assert run(monkeypatch, [*argv, "--on_bad_row=skip"]) == 0
    assert "events            2" in capsys.readouterr().out


def test_mistakes_are_one_line_with_exit_code_two(clicks, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    mistakes = {
        (): "give --config=FILE, or --source=NAME and --path=RAW",
        ("--source=ml-2m",): "did you mean 'ml-20m'?",
        (
            "--source=csv",
            "--config.data.path=x",
        ): "--config.data.path changes a config: give --config=FILE too",
        ("--source=csv", f"--path={clicks}", "--user-colum=who"): "did you mean --user_column?",
        (
            "--source=csv",
            f"--path={clicks}",
        ): "no user column 'user_id', only 'who', 'what', 'when'",
        (
            "--source=csv",
            f"--path={clicks}",
            *OWN,
        ): "clicks.csv:4: time is not a number in 'b,x,nine'",
        ("--source=csv", f"--path={clicks}", *OWN, "--filter=kcore"): "did you mean 'k_core'?",
    }
    for argv, message in mistakes.items():
        assert run(monkeypatch, [*argv, f"--out={out}"] if argv else []) == 2
        shown = capsys.readouterr()
        assert (
            message in shown.err and shown.err.startswith("error: ") and shown.err.count("\n") == 1
        )
        assert not shown.out and not out.exists()


def test_debug_shows_the_traceback(clicks, monkeypatch, capsys):
    assert run(monkeypatch, ["--source=csv", f"--path={clicks}", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_tells_the_flags(monkeypatch, capsys):
    assert run(monkeypatch, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--source" in shown and "--on_bad_row" in shown and "--out" in shown


def test_the_module_runs_as_a_command(clicks):
    command = [sys.executable, "-m", "gr_jax.prepare", "--source=csv", f"--path={clicks}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=100
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: ")
        and "Traceback" not in done.stderr
    )


def test_beam_has_to_be_installed_and_needs_a_log(clicks, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    argv = [f"--out={tmp_path}/out", "--source=csv", f"--path={clicks}", *OWN]
    cases = {
        "--runner=beam": "pip install 'gr-jax[beam]'",
        "--beam-options=--runner=FlinkRunner": "--beam-options is only for --runner=beam",
    }
    for flag, expected in cases.items():
        assert run(monkeypatch, [*argv, flag]) == 2
        assert expected in capsys.readouterr().err
    assert run(monkeypatch, [argv[0], "--source=synthetic", "--runner=beam"]) == 2
    assert "data.source=synthetic is generated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_config_that_hashes_ids_is_told_how_many_items_collide(
    clicks, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "own.py"
    file.write_text(
        "from gr_jax.config import *\n"
        "def get_config():\n"
        f"    data = DataConfig(path={str(clicks)!r}, user_column='who', item_column='what',\n"
        "                      time_column='when')\n"
        "    vocabulary = VocabularyConfig(kind='hashed', rows=1, hashes=2)\n"
        "    return Config(data=data, vocabulary=vocabulary)\n"
    )
    assert (
        run(monkeypatch, [f"--config={file}", "--on_bad_row=skip", f"--out={tmp_path / 'out'}"])
        == 0
    )
    shown = {line[:17].strip(): line[17:].strip() for line in capsys.readouterr().out.splitlines()}
    assert shown["vocabulary"] == "hashed, 2 hashes of each item to 1 rows"
    assert (
        shown["one row shared"]
        == shown["all rows shared"]
        == "by 100.00% of the items (100.00% expected)"
    )
