import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import gr_jax
from gr_jax import serve, train
from gr_jax.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def call(url: str, body: dict | None = None) -> tuple[int, dict]:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def keep_asking(url: str, told: list) -> None:
    """Ask until no server listens; collect each status, or the error of a request."""
    while True:
        try:
            told.append(call(f"{url}/recommend", {"user": f"u{len(told) % 20}", "k": 3})[0])
        except urllib.error.URLError as error:  # refused at the door
            return told.append(type(error.reason))
        except (OSError, http.client.HTTPException) as error:  # after it was let in
            return told.append(type(error))


@pytest.fixture(scope="module")
def tomorrow(retrieval, tmp_path_factory) -> Path:
    """A run that goes on from `retrieval` with more events of its log."""
    folder = tmp_path_factory.mktemp("tomorrow")
    log = (retrieval.parent / "log.csv").read_text()
    more = "".join(f"u{user},i{user},{2 * 10**9}\n" for user in range(9))
    (folder / "log.csv").write_text(f"{log}{more}")
    (folder / "titles.csv").write_text((retrieval.parent / "titles.csv").read_text())
    flags = [f"--init-from={retrieval}", f"--data={folder / 'log.csv'}", "--report=false"]
    assert train.main([*flags, f"--workdir={folder / 'run'}", "--config.train.epochs=1"]) == 0
    return folder / "run"


def test_the_command_serves_until_a_signal_and_then_answers_what_has_arrived_and_ends(
    retrieval, tomorrow, tmp_path
):
    port, today = free_port(), tmp_path / "today"
    today.symlink_to(retrieval)
    flags = [
        f"--workdir={today}",
        f"--port={port}",
        "--max-k=10",
        "--max-candidates=10",
        "--max-batch=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "gr_jax.serve", *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 200
    status = 0
    while status != 200 and process.poll() is None and time.monotonic() < deadline:
        try:
            status = call(f"{url}/healthz")[0]
        except OSError:
            time.sleep(0.1)
    answer = call(f"{url}/recommend", {"user": "u1", "k": 3}) if status == 200 else (0, {})
    asked: list[list] = [[] for _ in range(8)]
    clients = [threading.Thread(target=keep_asking, args=(url, told)) for told in asked]
    for client in clients:
        client.start()
    lines, exchanged = [], (0, {})
    while status == 200 and not all(asked):
        time.sleep(0.01)
    if status == 200:  # the model is exchanged under the requests, none of which is lost
        process.send_signal(signal.SIGHUP)
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("reload: done", "reload: the")):
                break
        today.unlink()
        today.symlink_to(tomorrow)
        exchanged = call(f"{url}/reload", {})
    before_the_end = [len(told) for told in asked]
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    output = "".join(lines) + rest
    for client in clients:
        client.join(timeout=60)
    assert status == 200 and answer[0] == 200 and len(answer[1]["items"]) == 3, output
    versions = {"version": gr_jax.load(tomorrow).version, "before": answer[1]["version"]}
    assert exchanged == (200, versions) and len(set(versions.values())) == 2, output
    assert process.returncode in (0, -signal.SIGTERM), output
    assert (
        f"http://127.0.0.1:{port}/" in output
        and "index built in" in output
        and "Traceback" not in output
    )
    assert output.count("reload: done") == 2 and "warmed up in" in output
    assert output.index("loading  ") < output.index("warming up:") < output.index("serving  ")
    for told, count in zip(asked, before_the_end, strict=True):
        assert set(told[:count]) == {200}, told[:count]
        assert set(told[:-1]) <= {200, 503} and told[-1] in (
            ConnectionRefusedError,
            ConnectionResetError,
        ), told
    programs = [file for file in (tmp_path / "gr_jax" / "compiled").rglob("*") if file.is_file()]
    assert programs, "for the next start"
    assert not (retrieval / "compiled").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--port=99999"], "--port=99999: must be in"),
        (["--max-batch=0"], "--max_batch=0: must be at least 1"),
        (["--max-batch=64"], "--max_batch=64: must be at most 32"),
        (["--max-wait-ms=-1"], "--max_wait_ms=-1.0: must be in"),
        (["--cache-mb=nan"], "--cache_mb: expected a finite number, got 'nan'"),
        (["--cache-mb=inf"], "--cache_mb: expected a finite number, got 'inf'"),
        (["--max-wait-ms=nan"], "--max_wait_ms: expected a finite number"),
        (["--max-queue-ms=0"], "--max_queue_ms=0.0: must be at least 1"),
        (["--max-connections=0"], "--max_connections=0: must be at least 1"),
        (
            ["--allowed-hosts=a.example,b.example"],
            "--allowed_hosts='a.example,b.example': expected",
        ),
        (["--allowed-hosts=http://a.example/"], "--allowed_hosts='http://a.example/': expected"),
        (["--port=1", "--port=2"], "--port is given twice"),
        (["--index=annoy"], "--index='annoy': must be one of exact, faiss"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(retrieval, flags, told):
    with pytest.raises(ConfigError, match=told):
        serve.main([f"--workdir={retrieval}", *flags])


# In PYTHONPATH it is imported at the start of Python: the signal comes when jax is imported.
HANGUP_WHILE_IMPORTING = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, Finder())
"""


def test_a_reload_in_the_first_second_does_not_end_the_command(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HANGUP_WHILE_IMPORTING)
    command = [sys.executable, "-m", "gr_jax.serve", f"--workdir={tmp_path}", "--port=0"]
    paths = f"{ROOT}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "holds no run" in done.stderr, done


def test_a_folder_without_a_run_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        serve.main([f"--workdir={tmp_path}", "--port=0"])


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port={port}: another program listens there"):
            serve.main([f"--workdir={tmp_path}", f"--port={port}"])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_here_is_one_line(tmp_path, host):
    with pytest.raises(ConfigError, match=f"--host='{host}' --port=0: "):
        serve.main([f"--workdir={tmp_path}", "--port=0", f"--host={host}"])


@pytest.mark.parametrize(
    ("flags", "served", "refused"),
    [
        ([], {"localhost", "127.0.0.1", "[::1]"}, "evil.example"),
        (["--host=127.0.0.5"], {"localhost", "127.0.0.5"}, "evil.example"),
        (["--host=::1"], {"localhost", "[::1]"}, "::1"),
        (["--allowed-hosts=recs.example"], {"localhost", "recs.example"}, "evil.example"),
        (
            ["--host=0.0.0.0", "--allowed-hosts=A.example:80", "--allowed-hosts=b.example"],
            {"a.example", "b.example"},
            "localhost",
        ),
    ],
)
def test_names_that_are_served_are_local_ones_unless_told(monkeypatch, flags, served, refused):
    found = []
    monkeypatch.setattr(serve, "bind", lambda host, port: (None, "http://x/"))
    monkeypatch.setattr(serve, "serve", lambda *settings: found.append(settings[-1]) or 0)
    assert serve.main(["--workdir=x", *flags]) == 0
    assert served <= found[0] and refused not in found[0]
    assert serve.main(["--workdir=x", "--host=0.0.0.0"]) == 0
    assert found[1] is None, "all names, for all addresses"


def test_a_half_written_run_is_refused_at_the_start_by_the_command(retrieval, tmp_path):
    (tmp_path / "config.json").write_text((retrieval / "config.json").read_text()[:200])
    command = [sys.executable, "-m", "gr_jax.serve", f"--workdir={tmp_path}", "--port=0"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "serving" not in done.stdout
    assert (
        "config.json" in done.stderr
        and "not JSON" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_without_fastapi_the_command_tells_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gr-jax\[serve\]'"):
        serve.main([f"--workdir={tmp_path}"])
