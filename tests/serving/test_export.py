import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gr_jax
from gr_jax import export, folders
from gr_jax.config import ConfigError
from gr_jax.serving.export import digest
from gr_jax.serving.export.read import load_exported

pytest.importorskip("flatbuffers")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).resolve().parents[2]

# Runs where neither the model's code nor the training's can be imported.
WITHOUT = """
import sys
for name in ("flax", "optax", "orbax", "gr_jax.models", "gr_jax.training"):
    sys.modules[name] = None
import time
import uvicorn
from fastapi.testclient import TestClient
from gr_jax import serve
from gr_jax.serving.export.read import load_exported

def run(server, sockets):
    with TestClient(server.config.app, base_url="http://localhost") as client:
        while client.get("/healthz").json()["status"] in ("loading", "warming up"):
            time.sleep(0.1)

uvicorn.Server.run = run
flags = ["--exported", "--port=0", "--max-batch=1", "--max-k=10", "--max-candidates=10"]
assert serve.main([f"--workdir={sys.argv[1]}", *flags]) == 0
print("answer")
loaded = load_exported(sys.argv[1])
history = loaded.history("u3")[:9]
items = loaded.recommend([history, history[:2]], k=4)[1]
print(*[f"{item.item} {item.score:.5f}" for item in items])
"""


@pytest.fixture(scope="module")
def exported(retrieval) -> Path:
    assert export.main([f"--workdir={retrieval}"]) == 0
    return retrieval


def test_an_export_recommends_and_scores_as_the_checkpoint(exported):
    ours, theirs = load_exported(exported), gr_jax.load(exported)
    histories = [
        ours.history(f"u{n}")[: 1 + n % 9] for n in range(12)
    ]  # more than one size of batch
    for history, a, b in zip(
        histories, ours.recommend(histories, k=40), theirs.recommend(histories, k=40), strict=True
    ):
        np.testing.assert_allclose(
            [i.score for i in a],
            [i.score for i in ours.score(history, [i.item for i in a])],
            atol=1e-6,
        )
        assert {i.item: round(i.score, 4) for i in a} == pytest.approx(
            {i.item: i.score for i in b}, abs=1e-4
        )


def test_an_export_has_tables_of_users_and_no_run(exported):
    ours, theirs = load_exported(exported), gr_jax.load(exported)
    found, expected = (model.recommend_users(["u3", "u5"], k=40) for model in (ours, theirs))
    assert found.drop("score", "item", "rank").equals(expected.drop("score", "item", "rank"))
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)
    for call in (ours.evaluate, lambda: ours.save("elsewhere")):
        with pytest.raises(ValueError, match="an exported model has no run"):
            call()


def test_an_export_is_served_where_the_code_of_the_model_cannot_be_imported(exported):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(exported)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    loaded = gr_jax.load(exported)
    expected = loaded.recommend(loaded.history("u3")[:2], k=4)
    served, answer = done.stdout.rsplit("answer\n", 1)
    assert "retrieval  40 items" in served and "serving  http://127.0.0.1:" in served
    assert answer.split() == [word for i in expected for word in (i.item, f"{i.score:.5f}")]


def test_an_export_of_a_ranking_run_predicts_the_same(ranking):
    assert export.main([f"--workdir={ranking}"]) == 0
    ours, theirs = load_exported(ranking), gr_jax.load(ranking)
    histories = [ours.history("u1")[:7], ours.history("u2")[:30], []]
    wanted = [f"i{i}" for i in range(20)]
    for a, b in zip(
        ours.score(histories, wanted, user="u1"),
        theirs.score(histories, wanted, user="u1"),
        strict=True,
    ):
        np.testing.assert_allclose(
            [list(i.tasks.values()) for i in a], [list(i.tasks.values()) for i in b], atol=1e-5
        )


def test_an_export_is_not_served_with_another_log(exported, tmp_path):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    file = copy / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hash": "0"}))
    with pytest.raises(ConfigError, match="the log has changed"):
        load_exported(copy)


def edited(folder: Path, **facts) -> None:
    """Other facts, with the old checksum."""
    file = folder / "export.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def signed(folder: Path, **facts) -> None:
    """Other facts, with checksums that fit."""
    meta = json.loads((folder / "export.json").read_text()) | facts
    edited(folder, **facts, digest=digest(meta))


def refilled(folder: Path, change) -> None:
    """Other parameters, with checksums that fit."""
    file = folder / "parameters.npz"
    with np.load(file) as opened:
        arrays = change(dict(opened))
    np.savez(file, **arrays)
    (folder / "export.json").rename(folder.parent / "export.json")
    sums = folders.manifest(folder)
    (folder.parent / "export.json").rename(folder / "export.json")
    signed(folder, files=sums)


def flip(file: Path, place: int) -> None:
    """One bit."""
    data = bytearray(file.read_bytes())
    data[place] ^= 16
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: shutil.rmtree(f), "no export here; python -m gr_jax.export --workdir="),
        (lambda f: (f / "export.json").write_text("{"), "export.json: damaged, not JSON"),
        (lambda f: (f / "export.json").write_bytes(b"\xff\xfe"), "export.json: damaged, not JSON"),
        (lambda f: (f / "export.json").write_text("[" * 10**5), "export.json: damaged, not JSON"),
        (lambda f: (f / "export.json").write_text("[]"), "export.json: damaged, not a JSON object"),
        (lambda f: (f / "export.json").write_text('{"version": 9}'), "export version 9, this is 2"),
        (lambda f: edited(f, row_length=24), "export.json: damaged, its checksum is another"),
        (lambda f: edited(f, files={}), "export.json: damaged"),
        (lambda f: (f / "parameters.npz").write_bytes(b"PK"), "parameters.npz: damaged"),
        (lambda f: (f / "parameters.npz").unlink(), "parameters.npz: missing; python -m gr_jax.ex"),
        (lambda f: flip(f / "parameters.npz", 5000), "parameters.npz: damaged, its checksum"),
        (lambda f: flip(f / "program.jax", 2000), "program.jax: damaged, its checksum"),
        (lambda f: (f / "program.jax").write_bytes(b"\0" * 9), "program.jax: damaged"),
        (lambda f: (f / "other").write_text(""), "other: does not belong to this folder"),
        (lambda f: refilled(f, lambda p: p | {"x": np.ones(1)}), "other names than export.json"),
        (lambda f: refilled(f, lambda p: {n: x[:-1] for n, x in p.items()}), "the program takes"),
        (lambda f: refilled(f, lambda p: {n: x * np.float64(1) for n, x in p.items()}), "float64"),
        (lambda f: refilled(f, lambda p: {n: x * np.nan for n, x in p.items()}), "is not finite"),
        (lambda f: signed(f, dataset="another"), "of a run on another log"),
    ],
)
def test_a_damaged_export_is_refused_with_the_reason(exported, tmp_path, damage, told):
    shutil.copytree(exported, tmp_path / "copy")
    damage(tmp_path / "copy" / "export")
    with pytest.raises(ConfigError, match=told) as caught:
        load_exported(tmp_path / "copy")
    assert "\n" not in str(caught.value)
