"""Damage to the files of a workdir, a dataset and an export: one line, or the same answer.

    python -m experiments.faults.tamper --out=FILE

A small run is trained and exported. Each of its files is then damaged in each of `WAYS`, in a copy,
and read by what uses it: `recommend` and `evaluate` read the workdir (which has its own dataset),
`prepare` the prepared dataset, the server's loader the export. Each has to give the same answer as
before, or to raise an error that the command line tells in one line. A traceback, or another answer
with exit code 0, is a failure.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.common.results import arguments, command_line, keep
from gr_jax import evaluate, export, prepare, recommend, train
from gr_jax.config import files
from gr_jax.errors import line_of
from gr_jax.serving.export.read import load_exported

CONFIG = """
from gr_jax.config import *

def get_config(variant=""):
    return Config(
        data=DataConfig(
            source="csv", path={log!r}, prepared={prepared!r}, max_length=8, row_length=16,
            actions=("seen=1", "liked=stars>=4"), item_file="items.csv", item_features=("genre",),
            user_file="users.csv", user_features=("country",), rating_column="stars",
        ),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8),
        train=TrainConfig(epochs=2, batch_users=16, patience=0),
        mesh=MeshConfig(data=1),
    )
"""


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A damage that puts something else in the place of a file."""

    def damage(file: Path) -> object:
        file.unlink()
        return make(file)

    return damage


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """A damage to the bytes of a file; not in place, as it may be a hard link."""

    def damage(file: Path) -> object:
        data = change(file.read_bytes())
        return replaced_by(lambda file: file.write_bytes(data))(file)

    return damage


def flipped(data: bytes, place: float) -> bytes:
    """One bit flipped, at a share of the length."""
    if not data:
        return b"\x10"
    at = min(len(data) - 1, int(place * len(data)))
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


WAYS: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "empty": rewritten(lambda data: b""),
    "half": rewritten(lambda data: data[: len(data) // 2]),
    "a byte short": rewritten(lambda data: data[:-1]),
    "a byte long": rewritten(lambda data: data + b"\0"),
    "a bit flipped at the start": rewritten(lambda data: flipped(data, 0.02)),
    "a bit flipped in the middle": rewritten(lambda data: flipped(data, 0.5)),
    "zeros": rewritten(lambda data: bytes(len(data))),
    "noise": rewritten(lambda data: random.Random(0).randbytes(len(data))),
    "nested 100,000 deep": rewritten(lambda data: b"[" * 100_000),
    "an integer of 5,000 digits": rewritten(lambda data: b'{"version": ' + b"9" * 5000 + b"}"),
    "a folder": replaced_by(Path.mkdir),
    "a link to itself": replaced_by(lambda file: file.symlink_to(file.name)),
}


def make(folder: Path) -> Path:
    """A small run with an export; the config file."""
    rng = random.Random(0)
    log = ["user_id,item_id,timestamp,stars"]
    for user in range(40):
        start = rng.randrange(30)
        log += [f"u{user},i{(start + n) % 30},{10**9 + 60 * n},{n % 5 + 1}" for n in range(10)]
    (folder / "log.csv").write_text("\n".join(log) + "\n")
    genres = ["item_id,genre", *(f"i{item},{'even' if item % 2 else 'odd'}" for item in range(30))]
    (folder / "items.csv").write_text("\n".join(genres) + "\n")
    countries = [
        "user_id,country",
        *(f"u{user},{'BE' if user % 3 else 'FR'}" for user in range(40)),
    ]
    (folder / "users.csv").write_text("\n".join(countries) + "\n")
    config = folder / "config.py"
    paths = {"log": str(folder / "log.csv"), "prepared": str(folder / "prepared")}
    config.write_text(CONFIG.format(**paths))
    train.main([f"--config={config}", f"--workdir={folder / 'run'}", "--report=false"])
    export.main([f"--workdir={folder / 'run'}"])
    return config


def printed(main: Callable[[list[str]], object], *argv: str) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert not main(list(argv))
    return out.getvalue()


def of_workdir(workdir: Path) -> str:
    """What the users of a run are told."""
    told = printed(recommend.main, f"--workdir={workdir}", "--user=u3", "-k=5", "--json")
    return told + printed(evaluate.main, f"--workdir={workdir}")


def of_export(workdir: Path) -> str:
    """What a server of the export answers."""
    model = load_exported(workdir)
    return str(model.recommend(model.history("u3"), k=5))


def of_prepared(config: Path, folder: Path) -> str:
    """The summary of a prepared dataset."""
    lines = printed(prepare.main, f"--config={config}", f"--out={folder}").splitlines()
    return "\n".join(line for line in lines if not line.startswith(("seconds", "folder")))


def files_in(folder: Path) -> Iterator[Path]:
    """Files, relative to the folder, in a fixed order."""
    return (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())


def outcome(answer: Callable[[], str], expected: str) -> tuple[str, str]:
    """same | line | DIFFERENT | TRACEBACK, and the line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return ("same" if answer() == expected else "DIFFERENT"), ""
    except Exception as error:
        line = line_of(error)
        return ("line", line) if line else ("TRACEBACK", f"{type(error).__name__}: {error}"[:300])


def tamper(name: str, folder: Path, only: str, read: Callable[[Path], str]) -> list[dict]:
    """Every damage to the files of a folder below `only`, and what came of it."""
    expected, found = read(folder), []
    for file in files_in(folder / only):
        for way, damage in WAYS.items():
            copy = folder.with_name("copy")
            shutil.copytree(folder, copy, copy_function=os.link)
            damage(copy / only / file)
            kind, line = outcome(lambda copy=copy: read(copy), expected)
            shutil.rmtree(copy)
            found.append({"of": name, "file": str(file), "way": way, "came": kind, "line": line})
            if kind.isupper():
                print(name, found[-1], flush=True)
    return found


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make(folder)
        run = folder / "run"
        without = folder / "alone"
        shutil.copytree(run, without, ignore=shutil.ignore_patterns("export"))
        found = tamper("workdir", without, ".", of_workdir)
        found += tamper("export", run, "export", of_export)
        found += tamper(
            "prepared", folder / "prepared", ".", lambda copy: of_prepared(config, copy)
        )
        assert files.read(run / "config.json").seed == 0
    table: dict[str, Counter[str]] = {}
    for one in found:
        table.setdefault(one["of"], Counter())[one["came"]] += 1
    for name, counts in table.items():
        print(f"{name:10}", dict(counts))
    print(f"{time.monotonic() - start:.0f} s")
    failures = [one for one in found if one["came"].isupper()]
    if args.out:
        counts = {name: dict(counted) for name, counted in table.items()}
        keep(args.out, {"command": command_line(), "counts": counts, "failures": failures})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
