"""The command line: flags, the config and its overrides, help, and how errors reach the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_jax import cli
from gr_jax.config import ConfigError
from gr_jax.errors import line_of

ROOT = Path(__file__).resolve().parents[1]
ML_1M = str(ROOT / "configs" / "ml_1m.py")
FLAGS = {
    "workdir": (Path, Path("runs/last"), "folder of the run"),
    "split": (("test", "valid"), "test", "which events"),
    "k": (int, 10, "items"),
    "at_time": (float, None, "seconds"),
    "json": (bool, False, "print JSON"),
}


def parse(*argv, config="optional", flags=FLAGS):
    return cli.parse(argv, doc="What it does.\n\nMore.", flags=flags, config=config)


def one_line(*argv, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_have_their_defaults():
    args = parse()
    assert vars(args) == {
        "workdir": Path("runs/last"),
        "split": "test",
        "k": 10,
        "at_time": None,
        "json": False,
        "debug": False,
        "config": None,
        "config_spec": None,
        "overrides": {},
    }


def test_flags_take_the_type_they_declare():
    args = parse(
        "--workdir=a/b", "--split", "valid", "-k", "3", "--at-time", "-1.5", "--json", "--debug"
    )
    assert (args.workdir, args.split, args.k, args.at_time) == (Path("a/b"), "valid", 3, -1.5)
    assert args.json is True and args.debug is True
    assert parse("--json=false").json is False
    assert parse("--workdir=~/a").workdir == Path("~/a").expanduser()


def test_the_config_is_loaded_and_overridden_in_either_spelling():
    args = parse(f"--config={ML_1M}:large", "--config.model.width=64")
    assert args.config.model.num_blocks == 8 and args.config.model.width == 64
    assert args.config_spec == f"{ML_1M}:large"
    assert parse("--config", ML_1M, "--config.model.width", "64").config.model.width == 64
    assert parse("--config.model.width=64", f"--config={ML_1M}").config.model.width == 64


def test_a_value_may_hold_an_equals_sign():
    assert parse(f"--config={ML_1M}", "--config.data.path=a=b").config.data.path == "a=b"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wordir=x"], "unknown flag --wordir; did you mean --workdir?"),
        (["--confg=x"], "unknown flag --confg; did you mean --config?"),
        (["--confg.model.width=3"], "did you mean --config.model.width?"),
        (["--num_blocks=3"], "did you mean --config.model.num_blocks?"),
        (["--zzz"], "unknown flag --zzz; there are --workdir,"),
        (["ml_1m.py"], "unexpected argument 'ml_1m.py'"),
        (["--workdir"], "--workdir needs a value: --workdir=PATH"),
        (["--workdir", "--json"], "--workdir needs a value"),
        (["--workdir="], "--workdir needs a value"),
        (["--config", "--json"], "--config needs a value: --config=FILE[:variant]"),
        (["--k=many"], "--k: expected int, got 'many'"),
        (["--k=" + "9" * 5000], "--k: expected int, got '999"),
        (["--k=1" + "0" * 20], "must fit in 64 bits"),
        (["--at-time=nan"], "--at_time: expected a finite number, got 'nan'"),
        (["--at-time=-inf"], "--at_time: expected a finite number, got '-inf'"),
        (["--workdir=~nobody-has-this-name/x"], "--workdir: expected Path, got '~nobody"),
        (["--k=3", "--k=4"], "--k is given twice, as '3' and '4'"),
        (["--at-time=3", "--at_time", "4"], "--at_time is given twice"),
        (["--json", "--json"], "--json is given twice"),
        ([f"--config={ML_1M}", f"--config={ML_1M}:large"], "--config is given twice"),
        (
            [f"--config={ML_1M}", "--config.seed=1", "--config.seed=2"],
            "--config.seed is given twice, as '1' and '2'",
        ),
        ([f"--config={ML_1M}", "--config.model.width=1e30"], "expected int, got '1e30'"),
        ([f"--config={ML_1M}", f"--config.model.width={10**30}"], "must fit in 64 bits"),
        ([f"--config={ML_1M}", f"--config.model.width={'9' * 5000}"], "expected int, got '999"),
        ([f"--config={ML_1M}", f"--config.optimizer.learning_rate={10**400}"], "expected float"),
        (["--json=maybe"], "--json: expected true or false, got 'maybe'"),
        (["--split=tset"], "--split='tset': must be one of test, valid; did you mean 'test'?"),
        ([f"--config={ML_1M}", "--config.model.widht=3"], "did you mean config.model.width?"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(argv, message):
    assert message in one_line(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["x" * 10**5],
        ["--" + "x" * 10**5],
        ["--k=" + "x" * 10**5],
        ["--k=1", "--k=" + "x" * 10**5],
        ["--split=" + "x" * 10**5],
        ["--json=" + "x" * 10**5],
        ["--config=" + "x/" * 10**3],
        [f"--config={ML_1M}:" + "x" * 10**5],
        [f"--config={ML_1M}", "--config.model.width=" + "x" * 10**5],
        [f"--config={ML_1M}", "--config.model." + "x" * 10**5 + "=1"],
        [f"--config={ML_1M}", "--config.data.source=" + "x" * 10**5],
    ],
)
def test_of_a_long_text_an_error_repeats_a_hundred_characters(argv):
    with pytest.raises((ConfigError, OSError)) as caught:
        parse(*argv)
    assert len(line_of(caught.value)) < 1000


def test_what_must_be_given_is_asked_for():
    assert "--config=FILE[:variant] must be given" in one_line(config="required")
    assert "--user=STR must be given" in one_line(flags={"user": (str, cli.REQUIRED, "raw id")})


def test_a_command_without_a_config_does_not_know_the_flag():
    assert "unknown flag --config" in one_line(f"--config={ML_1M}", config="none")
    assert not hasattr(parse(config="none"), "config")


def test_help_shows_the_docstring_the_flags_and_the_fields(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help", config="required", flags=FLAGS | {"user": (str, cli.REQUIRED, "raw id")})
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for text in (
        "What it does.\n\nMore.",
        "--config=FILE[:variant]",
        "--workdir=PATH",
        "folder of the run (default runs/last)",
        "--split=test|valid",
        "raw id (must be given)",
        "model.num_blocks=2",
        "encoder blocks",
    ):
        assert text in shown


def test_help_with_a_config_shows_its_values(capsys):
    with pytest.raises(SystemExit):
        parse("--help", f"--config={ML_1M}:large")
    assert "model.num_blocks=8" in capsys.readouterr().out


def test_help_without_a_config_shows_no_fields(capsys):
    with pytest.raises(SystemExit):
        parse("--help", config="none")
    assert "config" not in capsys.readouterr().out


# Exit codes, through a real process: `body` is the command's main.


def command(folder: Path, body: str, *argv: str) -> subprocess.CompletedProcess:
    script = folder / "command.py"
    script.write_text(f"from gr_jax import cli\ndef main(argv):\n    {body}\ncli.run(main)\n")
    words = [sys.executable, str(script), *argv]
    return subprocess.run(
        words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "cli.parse(argv, doc='', flags={})",
            "error: --config=FILE[:variant] must be given; see --help\n",
        ),
        ("open('nowhere/file')", "error: No such file or directory: nowhere/file\n"),
        (
            "from gr_jax.config import DataConfig; DataConfig(max_length=0)",
            "error: config.data.max_length=0",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, body, message):
    done = command(tmp_path, body)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_debug_shows_where_a_mistake_was_found(tmp_path):
    done = command(tmp_path, "open('nowhere/file')", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.endswith(
        "error: No such file or directory: nowhere/file\n"
    )


@pytest.mark.parametrize(
    "error", ["ValueError('shapes')", "KeyError('x')", "NotImplementedError('later')"]
)
def test_a_fault_of_the_program_keeps_its_traceback(tmp_path, error):
    done = command(tmp_path, f"raise {error}")
    assert done.returncode == 1 and "Traceback" in done.stderr and "error: " not in done.stderr


def test_ctrl_c_exits_130_without_a_traceback(tmp_path):
    done = command(tmp_path, "raise KeyboardInterrupt")
    assert done.returncode == 130 and done.stderr == "interrupted\n"


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("open('/proc/self/full', 'w')", "No such file or directory: /proc/self/full"),
        ("open('/dev/full', 'w').write('x' * 10**6)", "No space left on device"),
        (f"open('{LONG}')", "File name too long: xxx"),
        ("import os; os.symlink('loop', '{tmp}/loop'); open('{tmp}/loop')", "Too many levels"),
        ("raise OSError(30, 'Read-only file system', '/data/x')", "Read-only file system: /data/x"),
        ("import urllib.error as e; raise e.URLError('unreachable')", "urlopen error unreachable"),
        ("raise MemoryError('Unable to allocate 3 PiB')", "out of memory: Unable to allocate"),
        ("import numpy; numpy.int32(2**40)", "a number is out of range: "),
        ("b'\\xff'.decode()", "text cannot be read"),
        ("import json; json.loads('[' * 10**5)", "a JSON file is damaged: "),
        ("import json; json.loads('9' * 5000)", "a JSON file is damaged: "),
    ],
)
def test_what_the_system_refuses_is_one_line(tmp_path, body, message):
    done = command(tmp_path, body.replace("{tmp}", str(tmp_path)))
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 500


def test_a_platform_without_a_device_is_one_line(tmp_path):
    body = "import os; os.environ['JAX_PLATFORMS'] = 'cuda'; import jax; jax.devices()"
    done = command(tmp_path, body)
    assert done.returncode == 2 and "error: JAX_PLATFORMS=cuda: no such device" in done.stderr
    assert "Traceback" not in done.stderr and "JAX_PLATFORMS=cpu" in done.stderr


def test_a_reader_that_has_gone_is_no_error_and_the_command_goes_on(tmp_path):
    body = "[print(i, flush=i % 2) for i in range(10**5)]; open('{tmp}/end', 'w'); return 3"
    script = tmp_path / "command.py"
    body = body.replace("{tmp}", str(tmp_path))
    script.write_text(f"from gr_jax import cli\ndef main(argv):\n    {body}\ncli.run(main)\n")
    done = subprocess.run(
        f"({sys.executable} {script}; echo $? > {tmp_path}/code) | head -3",
        shell=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0\n1\n2\n" and done.stderr == ""
    assert (tmp_path / "end").exists() and (tmp_path / "code").read_text() == "3\n"


def test_output_that_a_full_disk_refuses_is_an_error(tmp_path):
    script = tmp_path / "command.py"
    script.write_text("from gr_jax import cli\ncli.run(lambda argv: print('a'))\n")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2 and done.stderr == "error: No space left on device\n"


def test_success_exits_0_and_a_returned_code_is_kept(tmp_path):
    assert command(tmp_path, "pass").returncode == 0
    assert command(tmp_path, "return 3").returncode == 3


def test_a_kernel_that_cannot_run_here_is_a_users_mistake():
    raised = {"__name__": "pallas_kernels.fast"}
    exec("def op(): raise NotImplementedError('needs a GPU')", raised)
    with pytest.raises(NotImplementedError) as caught:
        raised["op"]()
    assert line_of(caught.value) == "needs a GPU"
    assert not line_of(NotImplementedError("elsewhere"))


def test_a_flag_that_may_come_several_times_takes_words_without_its_name_too():
    flags = {"workdir": ([Path], cli.REQUIRED, "folders")}
    args = parse("a", "--workdir=b", "--workdir", "c", "d", config="none", flags=flags)
    assert args.workdir == [Path("a"), Path("b"), Path("c"), Path("d")]
    assert "--workdir=PATH must be given" in one_line(config="none", flags=flags)


# In PYTHONPATH it is imported at the start of Python: jax is not there.
WITHOUT_JAX = "import sys\nsys.modules['jax'] = None\n"


def test_training_tells_its_folder_before_the_imports_that_take_seconds(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_JAX)
    command = [sys.executable, "-m", "gr_jax.train", "--config=configs/ml_1m.py"]
    paths = f"{ROOT}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout == "run     runs/ml_1m\n" and done.returncode, done
