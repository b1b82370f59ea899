"""The page in Chromium: a script at its end types, picks and clicks, and notes the texts."""

import contextlib
import html
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.responses import HTMLResponse

import gr_jax
from gr_jax.serving.http import server
from gr_jax.serving.http.limits import Limits
from tests.serving.test_serve import free_port

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=60000"
).split()
DRIVER = """
<script>
(async () => {
  const until = ready => new Promise(done => {
    const timer = setInterval(() => { if (ready()) { clearInterval(timer); done(); } }, 20);
  });
  const texts = selector =>
    [...document.querySelectorAll(selector)].map(element => element.textContent);
  const answer = () => texts("#answer .title"), told = {};
  const type = text => { $("search").value = text; $("search").dispatchEvent(new Event("input")); };
  const press = key =>
    $("search").dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));

  await until(() => answer().length === 10);
  told.popular = answer();
  told.why = $("told").textContent;
  told.actions = $("actions-row").offsetHeight;
  type("no such thing");
  await until(() => !$("options").hidden);
  told.nothing = texts("#options li");
  type("film i39");
  await until(() => texts("#options .title").length === 1);
  told.found = texts("#options .title");
  press("Enter");
  await until(() => $("told").textContent === "");
  told.history = texts("#history .title");
  told.first = answer();
  document.querySelector("#answer button").click();
  await until(() => texts("#history li").length === 2 && answer()[0] !== told.first[0]);
  told.second = answer();
  told.moved = texts("#answer .moved");
  document.body.dataset.told = JSON.stringify(told);
})();
</script>
"""


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    """The address of the app, served in a thread."""
    port = free_port()
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while app.state.service.status != "ready" and thread.is_alive():
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()


def in_chromium(url: str, profile: Path, *flags: str) -> str:
    """The document after its scripts have run."""
    command = [CHROMIUM or "", *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_person_picks_an_item_reads_titles_adds_one_and_sees_them_change(retrieval, tmp_path):
    loaded = gr_jax.load(retrieval)
    app = server.make_app(loaded, Limits(k=16, candidates=64, batch=1))

    @app.get("/driven")
    def driven() -> HTMLResponse:
        return HTMLResponse(server.PAGE.read_text().replace("</body>", DRIVER + "</body>"))

    with serving(app) as url:
        document = in_chromium(f"{url}/driven", tmp_path / "profile")
    found = re.search('data-told="([^"]*)"', document)
    assert found, document[-3000:]
    told = json.loads(html.unescape(found[1]))

    titles = lambda *history, at_time=None: [
        item.title for item in loaded.recommend(history, at_time=at_time)
    ]
    assert told["popular"] == titles() and told["why"] == "By popularity: the history is empty."
    assert told["actions"] == 0, (
        "nothing but being taken can happen in this log: no such row is shown"
    )
    assert told["nothing"] == ["No item has this in its title."]
    assert told["found"] == told["history"] == ["Film i39"]
    now = 1_700_000_000
    first = titles(("i39", now), at_time=now + 60)
    assert told["first"] == first
    second = titles(("i39", now), (first[0].removeprefix("Film "), now + 60), at_time=now + 120)
    assert told["second"] == second != first
    assert len(told["moved"]) == 10 and set(told["moved"]) - {""}, (
        "the places that changed are shown"
    )
