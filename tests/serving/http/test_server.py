import concurrent.futures
import json
import threading
import time

import jax
import numpy as np
import pytest
from fastapi.testclient import TestClient

import gr_jax
from gr_jax.serving.http import server, wire
from gr_jax.serving.http.limits import Limits

LIMITS = Limits(body_bytes=20_000, events=100, candidates=64, k=16, batch=8, wait_ms=1.0)


def wait_until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + 300
    while client.get("/healthz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def loaded(retrieval):
    return gr_jax.load(retrieval)


@pytest.fixture(scope="module")
def client(loaded):
    with TestClient(server.make_app(loaded, LIMITS), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture(scope="module")
def ranking_client(ranking):
    with TestClient(
        server.make_app(gr_jax.load(ranking), LIMITS), raise_server_exceptions=False
    ) as client:
        wait_until_ready(client)
        yield client


def events(loaded, user: str, count: int) -> list[dict]:
    return [{"item": event.item, "time": event.time} for event in loaded.history(user)[:count]]


def test_recommend_answers_as_load_does(client, loaded):
    answer = client.post("/recommend", json={"history": events(loaded, "u1", 5), "k": 4})
    assert answer.status_code == 200
    expected = loaded.recommend(loaded.history("u1")[:5], k=4)
    for ours, theirs in zip(answer.json()["items"], expected, strict=True):
        assert (ours["item"], ours["title"]) == (theirs.item, theirs.title)
        assert ours["score"] == pytest.approx(theirs.score, abs=1e-5)
    assert answer.json()["source"] == "model" and answer.json()["skipped"] == 0
    assert answer.json()["version"] == loaded.version


def test_events_within_a_second_are_ordered_by_their_full_times(client, loaded):
    second, names = 10**9, ("i7", "i21", "i3")
    expected = [i.item for i in loaded.recommend([(name, second) for name in names], k=16)]
    unix = [second + part for part in (0.01, 0.25, 0.48)]
    iso = [f"2001-09-09T01:46:40.{part}Z" for part in ("010000001", "010000002", "48")]
    for times in (unix, iso):
        events = [{"item": i, "time": t} for i, t in zip(names, times, strict=True)]
        for asked in (events, events[::-1]):
            body = {"history": asked, "k": 16, "at_time": "2001-09-09 01:46:40"}
            answer = client.post("/recommend", json=body).json()
            assert [i["item"] for i in answer["items"]] == expected


def test_a_user_of_the_log_needs_no_history(client, loaded):
    answer = client.post("/recommend", json={"user": "u1", "k": 4}).json()
    assert [i["item"] for i in answer["items"]] == [
        i.item for i in loaded.recommend(loaded.history("u1"), k=4)
    ]


def test_the_options_of_a_question_are_passed_on(client, loaded):
    body = {
        "history": events(loaded, "u1", 2),
        "k": 16,
        "at_time": "now",
        "allow": ["i3", "i4"],
        "deny": ["i4"],
    }
    body |= {"exclude_seen": False}
    assert [i["item"] for i in client.post("/recommend", json=body).json()["items"]] == ["i3"]


def test_without_a_history_the_popular_items_come(client):
    answer = client.post("/recommend", json={"history": [{"item": "gone", "time": 1}]}).json()
    assert (
        answer["source"] == "popularity" and answer["skipped"] == 1 and len(answer["items"]) == 10
    )


def test_score_answers_in_the_order_of_the_candidates(client, loaded):
    body = {"history": events(loaded, "u2", 4), "candidates": ["i9", "i3", "i9"]}
    answer = client.post("/score", json=body).json()["items"]
    assert [item["item"] for item in answer] == ["i9", "i3", "i9"]
    expected = loaded.score(loaded.history("u2")[:4], ["i9", "i3", "i9"])
    assert [item["score"] for item in answer] == pytest.approx(
        [item.score for item in expected], abs=1e-5
    )


def test_a_ranking_run_tells_every_task(ranking_client):
    health = ranking_client.get("/healthz").json()
    assert health["kind"] == "ranking" and health["tasks"] == ["liked", "rating"]
    body = {
        "history": [{"item": "i1", "time": 10**9, "action": "liked"}],
        "candidates": ["i2", "i3"],
        "task": "rating",
    }
    for item in ranking_client.post("/score", json=body).json()["items"]:
        assert (
            set(item["tasks"]) == {"liked", "rating"} and item["score"] == item["tasks"]["rating"]
        )
    best = ranking_client.post("/recommend", json={"user": "u1", "k": 3}).json()["items"]
    assert [i["score"] for i in best] == sorted((i["tasks"]["liked"] for i in best), reverse=True)


def test_requests_at_the_same_time_get_their_own_answers(client, loaded):
    bodies = [{"history": events(loaded, f"u{n % 20}", 1 + n % 7), "k": 3} for n in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post("/recommend", json=body), bodies))
    for n, answer in enumerate(answers):
        expected = loaded.recommend(loaded.history(f"u{n % 20}")[: 1 + n % 7], k=3)
        assert [i["item"] for i in answer.json()["items"]] == [i.item for i in expected]


def test_items_are_found_by_words_of_their_title_or_by_id(client):
    def find(query: str, **more) -> list[str]:
        return [
            i["item"] for i in client.get("/items", params={"query": query, **more}).json()["items"]
        ]

    assert set(find("film i39")) == {"i39"} and set(find("FILM I3", limit=100)) == {
        "i3",
        *(f"i3{i}" for i in range(10)),
    }
    assert len(find("")) == 20 and find("nothing like it") == [] and len(find("i", limit=1)) == 1
    assert find(".*") == [] and client.get("/items?limit=0").status_code == 422


BAD = [
    ("/recommend", b"{", 400, "the body is not JSON"),
    ("/recommend", b"\xff\xfe", 400, ""),
    ("/recommend", b"", 400, "the body is not JSON"),
    ("/recommend", b'{"k": 3, "k": 4}', 400, "the member 'k' comes twice"),
    ("/recommend", b'{"k": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
    ("/recommend", b"[]", 422, "body"),
    ("/recommend", {}, 422, "give a history, or a user of the log"),
    ("/recommend", {"user": "nobody"}, 404, "no user 'nobody' in the log"),
    ("/recommend", {"user": "\ud800"}, 404, "no user"),
    ("/recommend", {"history": [["i1", 5]]}, 422, "history.0"),
    ("/recommend", {"history": [{"item": "i1", "time": -1}]}, 422, "history.0.time: "),
    ("/recommend", b'{"history": [{"item": "i1", "time": NaN}]}', 422, "history.0.time: "),
    ("/recommend", b'{"history": [{"item": "i1", "time": 1e400}]}', 422, "history.0.time: "),
    ("/recommend", {"history": [{"item": "i1", "time": "5"}]}, 422, "history.0.time: "),
    (
        "/recommend",
        {"history": [{"item": "i1", "time": "2001-02-30"}]},
        422,
        "history.0.time: expected unix seconds",
    ),
    ("/recommend", {"history": [{"item": "i1", "time": True}]}, 422, "history.0.time: "),
    ("/recommend", {"history": [], "at_time": "soon"}, 422, "at_time: expected unix seconds"),
    ("/recommend", {"history": [], "at_time": False}, 422, "at_time: expected unix seconds"),
    ("/recommend", {"history": [], "deny": "i1"}, 422, "deny: "),
    ("/recommend", {"history": [], "allow": 5}, 422, "allow: "),
    ("/recommend", {"history": [], "deny": [5.0]}, 422, "deny.0"),
    ("/recommend", {"history": [], "exclude_seen": "false"}, 422, "exclude_seen: "),
    ("/score", {"history": [], "candidates": "i1"}, 422, "candidates: "),
    ("/recommend", {"history": [{"item": True, "time": 5}]}, 422, "history.0.item"),
    (
        "/recommend",
        {"history": [{"item": "i1", "time": 5, "when": 6}]},
        422,
        "history.0.when: Extra inputs",
    ),
    (
        "/recommend",
        {"history": [{"item": "i1", "time": 5, "action": "x"}]},
        422,
        "no action 'x' in the log",
    ),
    (
        "/recommend",
        {"history": [{"item": "i1", "time": 5}], "at_time": 4},
        422,
        "at_time=4 is before the last event",
    ),
    (
        "/recommend",
        {"history": [{"item": "i1", "time": 5}] * 101},
        422,
        "history: 101 of them, at most 100",
    ),
    ("/recommend", {"history": [], "k": 17}, 422, "k=17: at most 16 items"),
    ("/recommend", {"history": [], "k": 0}, 422, "k: "),
    ("/recommend", {"history": [], "k": True}, 422, "k: "),
    ("/recommend", {"history": [], "allow": ["x", "i1"]}, 422, "unknown items: 'x'"),
    ("/recommend", {"history": [], "task": "liked"}, 422, "task='liked': the tasks are none"),
    ("/score", {"history": []}, 422, "candidates: "),
    ("/score", {"history": [], "candidates": ["x", "i1", "y"]}, 422, "unknown items: 'x', 'y'"),
    (
        "/score",
        {"history": [], "candidates": ["i1"] * 65},
        422,
        "candidates: 65 of them, at most 64",
    ),
    ("/score", {"history": [], "candidates": ["i1"] * 10**6}, 413, "at most 20,000"),
    ("/score", b"[" * 10_000, 400, ""),
    ("/nothing", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "told"), BAD)
def test_a_request_that_cannot_be_answered_is_a_4xx_with_a_message(
    client, path, body, status, told
):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and told in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_body_without_a_length_is_measured_as_it_arrives(client):
    chunks = (b" " * 1000 for _ in range(1000))
    answer = client.post("/recommend", content=chunks)
    assert answer.status_code == 413 and "more than 20,000 bytes" in answer.json()["error"]
    assert client.get("/recommend").status_code == 405


def test_an_error_of_the_model_is_a_500_and_the_server_goes_on(client, loaded, monkeypatch):
    monkeypatch.setattr(client.app.state.service.served.batcher, "_answer", lambda requests: 1 / 0)
    answer = client.post("/recommend", json={"history": []})
    assert answer.status_code == 500 and "internal error" in answer.json()["error"]
    monkeypatch.undo()
    assert client.post("/recommend", json={"history": []}).status_code == 200


def test_before_the_warm_up_the_server_says_so_and_after_the_end_too(loaded, monkeypatch):
    monkeypatch.setattr(type(loaded), "warm_up", lambda self, **sizes: time.sleep(1))
    app = server.make_app(loaded, LIMITS)
    with TestClient(app) as client:
        health = client.get("/healthz")
        assert health.status_code == 503 and health.json()["status"] == "warming up"
        answer = client.post("/recommend", json={"history": []})
        assert answer.status_code == 503 and "warming up" in answer.json()["error"]
        assert "retry-after" in answer.headers
        wait_until_ready(client)
        assert client.get("/healthz").status_code == 200
    assert app.state.service.status == "shutting down"


def test_a_shutdown_does_not_wait_for_the_warm_up(loaded, monkeypatch):
    stopped, waited = threading.Event(), []
    monkeypatch.setattr(
        type(loaded), "warm_up", lambda self, **sizes: waited.append(stopped.wait(60))
    )
    with TestClient(server.make_app(loaded, LIMITS)) as client:
        assert client.get("/healthz").status_code == 503
    assert waited == []
    stopped.set()


@pytest.fixture
def compiled():
    """Grows with each program that is compiled."""
    names = []

    def note(name: str, *_, **__) -> None:
        if "backend_compile" in name:
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def test_nothing_is_compiled_after_the_warm_up(client, loaded, compiled):
    for count in (1, 7, 13):
        for k in (1, 16):
            assert client.post(
                "/recommend", json={"history": events(loaded, "u3", count), "k": k}
            ).is_success
        body = {"history": events(loaded, "u3", count), "candidates": ["i1"] * (5 * count - 4)}
        assert client.post("/score", json=body).is_success
    assert compiled == []
    jax.jit(lambda x: x + 1)(np.zeros(3))
    assert compiled, "the test would notice"


def test_nothing_is_compiled_after_the_warm_up_of_a_ranking_run(ranking_client, compiled):
    for count in (0, 1, 4, 11, 20):
        events = [
            {"item": f"i{i}", "time": 10**9 + 100 * i, "action": ["liked"] * (i % 2)}
            for i in range(count)
        ]
        for candidates in (1, 17, 33, 64):
            body = {"history": events, "candidates": ["i1"] * candidates, "user": "u9"}
            assert ranking_client.post("/score", json=body).is_success
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        bodies = [{"user": f"u{n}", "k": 5} for n in range(40)]
        assert all(
            answer.is_success
            for answer in pool.map(lambda b: ranking_client.post("/recommend", json=b), bodies)
        )
    assert compiled == []


def test_metrics_count_requests_by_path_and_status(client):
    client.post("/score", content=b"{")
    client.post("/recommend", json={"history": []})
    client.get("/some/other/path")
    text = client.get("/metrics").text
    assert 'gr_jax_requests_total{path="/score",status="400"}' in text
    assert 'gr_jax_requests_total{path="other",status="404"}' in text
    assert 'gr_jax_request_seconds_bucket{le="0.1",path="/recommend"}' in text
    assert "gr_jax_ready 1.0" in text and "gr_jax_batch_requests_count" in text


def test_a_server_tells_what_its_cache_does(client, ranking_client):
    for app in (client, ranking_client):
        for _ in range(2):
            assert app.post("/score", json={"user": "u7", "candidates": ["i1"]}).is_success
        values = dict(
            line.rsplit(" ", 1) for line in app.get("/metrics").text.splitlines() if line[0] != "#"
        )
        assert float(values["gr_jax_cache_hits"]) >= 1 and float(values["gr_jax_cache_bytes"]) > 0


def test_the_examples_of_the_documentation_are_answered(client, ranking_client):
    for app in (client, ranking_client):
        schema = app.get("/openapi.json").json()
        for path in ("/recommend", "/score"):
            content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert len(content["examples"]) >= 2
            for example in content["examples"].values():
                answer = app.post(path, json=example["value"])
                assert answer.status_code == 200, answer.text
                wire.AnswerOut.model_validate(answer.json())
            assert {"200", "400", "404", "413", "422", "503"} <= schema["paths"][path]["post"][
                "responses"
            ].keys()


def test_a_body_that_is_not_declared_as_json_is_refused(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "x" * 10**4):
        answer = client.post("/recommend", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415 and len(answer.json()["error"]) < 200
    kind = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/recommend", content=b'{"history": []}', headers=kind).is_success


def test_a_parameter_that_comes_twice_is_refused(client):
    answer = client.get("/items?query=i1&query=i2")
    assert answer.status_code == 422 and "'query' is given twice" in answer.json()["error"]


def test_of_what_is_sent_an_error_repeats_a_hundred_characters(client):
    long = "x" * 15_000
    event = {"item": "i1", "time": 5}
    for path, body in (
        ("/recommend", {"user": long}),
        ("/recommend", {"history": [], "task": long}),
        ("/recommend", {"history": [event | {"action": long}]}),
        ("/recommend", {"history": [event | {"time": long}]}),
        ("/recommend", {"history": [], "at_time": long}),
        ("/recommend", {"history": [], "allow": [long]}),
        ("/recommend", {"history": [], long: 5}),
        ("/score", {"history": [], "candidates": [long]}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code in (404, 422) and len(answer.text) < 400, answer.text


def test_large_bodies_are_read_away_from_the_event_loop(client, monkeypatch):
    threads, read = [], wire.read

    def noting(kind, body):
        threads.append(threading.current_thread().name)
        return read(kind, body)

    monkeypatch.setattr(wire, "read", noting)
    for blanks in (0, 17_000):
        content = b'{"history": []}' + b" " * blanks
        assert client.post("/recommend", content=content).is_success
    assert not threads[0].startswith("read") and threads[1].startswith("read")


def test_a_busy_server_refuses_large_requests_before_they_are_read(client, monkeypatch):
    batcher = client.app.state.service.served.batcher
    monkeypatch.setattr(batcher, "_work", 1e9)
    for path, content in (("/recommend", b'{"history": []}' + b" " * 17_000), ("/score", b"")):
        content = content or b'{"history": [], "candidates": ["i1"]}'
        answer = client.post(path, content=content)
        assert answer.status_code == 503 and "s of work are waiting" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200


def test_a_model_is_exchanged_and_one_that_cannot_be_loaded_is_not(retrieval, monkeypatch):
    first, second = gr_jax.load(retrieval), gr_jax.load(retrieval)
    second.version = "another"
    monkeypatch.setattr(type(first), "warm_up", lambda self, **sizes: None)
    models, said = [first, RuntimeError("half\nwritten"), second], []

    def load():
        model = models.pop(0)
        if isinstance(model, Exception):
            raise model
        return model

    app = server.make_app(load, LIMITS, say=said.append)
    with TestClient(app, client=("127.0.0.1", 5)) as client:
        wait_until_ready(client)
        answer = lambda: client.post("/recommend", json={"history": []}).json()["version"]
        assert answer() == first.version == client.get("/healthz").json()["version"]
        refused = client.post("/reload")
        told = "the model in use goes on: RuntimeError: half written"
        assert refused.status_code == 500 and refused.json() == {"error": told}
        assert answer() == first.version and len(first.version) == 12
        done = client.post("/reload")
        assert done.json() == {"version": "another", "before": first.version}
        assert answer() == "another" == client.get("/healthz").json()["version"]
        lines = client.get("/metrics").text.splitlines()
        assert [x for x in lines if x.startswith("gr_jax_model{")] == [
            'gr_jax_model{version="another"} 1.0'
        ]
        assert 'gr_jax_reloads_total{outcome="failed"} 1.0' in lines
    assert "reload: the model in use goes on (RuntimeError: half written)" in said


def test_reloads_that_come_while_a_model_is_loaded_become_one_after_it(loaded, monkeypatch):
    monkeypatch.setattr(type(loaded), "warm_up", lambda self, **sizes: None)
    loads, may_load = [], threading.Event()

    def load():
        loads.append(may_load.wait(60))
        return loaded

    said = []
    app = server.make_app(load, LIMITS, say=said.append)
    with TestClient(app, client=("127.0.0.1", 5)) as client:
        for _ in range(3):  # of what the first loading has read already, something may be old
            app.state.service.reload_soon()
        assert client.post("/reload").status_code == 503, "there is no model yet"
        may_load.set()
        wait_until_ready(client)
        assert client.post("/reload").is_success
    assert len(loads) == 3 and all(loads), "the first, one for the signals, and that of the request"


@pytest.mark.parametrize(
    ("client", "headers", "token", "status"),
    [
        ("127.0.0.1", {}, "", 200),
        ("::1", {}, "", 200),
        ("192.0.2.1", {}, "", 403),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.1"}, "", 403),
        ("127.0.0.1", {"origin": "http://localhost:8000"}, "", 403),
        ("127.0.0.1", {"authorization": "Bearer any"}, "secret", 403),
        ("127.0.0.1", {}, "secret", 403),
        ("192.0.2.1", {"authorization": "Bearer secret"}, "secret", 200),
    ],
)
def test_programs_of_this_machine_may_reload_and_others_with_a_token(
    loaded, monkeypatch, client, headers, token, status
):
    monkeypatch.setattr(type(loaded), "warm_up", lambda self, **sizes: None)
    app = server.make_app(loaded, LIMITS, reload_token=token)
    with TestClient(app, client=(client, 5)) as asking:
        wait_until_ready(asking)
        answer = asking.post("/reload", headers=headers)
        assert answer.status_code == status, answer.text
        assert status == 200 or "token" in answer.json()["error"].lower()


def test_the_interface_is_a_page_without_scripts_and_without_outside_assets(client):
    page = client.get("/docs")
    assert (
        page.status_code == 200 and "script-src 'none'" in page.headers["content-security-policy"]
    )
    for word in ("/recommend", "/score", "/items", "exclude_seen", "history[].time", "curl -s"):
        assert word in page.text, word
    for outside in ("http://", "https://", "<script", "src=", "@import"):
        assert outside not in page.text, outside


def test_the_page_is_one_file_without_outside_assets(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    for outside in ("http://", "https://", "//cdn", '<link rel="stylesheet', "src=", "@import"):
        assert outside not in page.text, outside
