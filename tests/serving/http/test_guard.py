import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from gr_jax.serving.http import guard, server


def client_of(allowed, **settings) -> TestClient:
    app = FastAPI()
    app.add_middleware(guard.Guard, allowed=allowed)

    @app.get("/")
    def root():
        return "there"

    return TestClient(app, **settings)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "localhost."]
)
def test_local_names_are_served(host):
    assert client_of(guard.LOCAL).get("/", headers={"host": host}).json() == "there"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "x" * 1000,
        "",
    ],
)
def test_other_names_are_not(host):
    answer = client_of(guard.LOCAL).get("/", headers={"host": host})
    assert answer.status_code == 400 and "--allowed-hosts" in answer.json()["error"]
    assert len(answer.json()["error"]) < 200
    assert client_of(None).get("/", headers={"host": host}).status_code == 200


def test_every_answer_tells_browsers_not_to_guess_or_frame():
    for answer in (client_of(None).get("/"), client_of(guard.LOCAL).get("/")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_policy_of_a_page_names_its_own_scripts_and_styles_alone():
    policy = guard.content_policy(server.PAGE.read_text())
    assert re.search("script-src 'sha256-[^ ;]+'; style-src 'sha256-[^ ;]+';", policy)
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'none'; style-src 'none'" in guard.content_policy("<p>nothing</p>")
