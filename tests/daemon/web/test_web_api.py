"""What a script or a scraper gets over HTTP."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_scrape_gets_what_the_renderer_made(client: Any) -> None:
    answer = client.get("/metrics")
    assert answer.text == "vqwatch_runs 1.0\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_health_does_not_depend_on_readiness(client: Any, fake: Any) -> None:
    fake.is_ready = False
    assert client.get("/-/healthy").status_code == 200
    assert client.get("/-/ready").status_code == 503


def test_runs_are_listed_with_their_layers(client: Any) -> None:
    (run,) = client.get("/api/runs").json()
    assert (run["name"], run["step"], run["state"]) == ("rq-512", 1200, "live")
    assert [layer["name"] for layer in run["layers"]] == [str(i) for i in range(8)]


def test_readings_carry_their_label_names_and_non_finite_values_as_words(client: Any) -> None:
    readings = client.get("/api/runs/rq-512/readings").json()
    assert readings["codebook_perplexity"] == {
        "labels": ["layer"],
        "values": [[str(i), 200.0 - i] for i in range(8)],
    }
    assert readings["loss"]["values"] == [["total", 1.25], ["vq", "NaN"]]


def test_an_unknown_run_is_a_404_with_a_sentence(client: Any) -> None:
    answer = client.get("/api/runs/nobody/readings")
    assert answer.status_code == 404
    assert answer.json() == {"error": "no run named 'nobody'"}


def test_a_run_with_a_slash_in_its_name_is_found(client: Any, fake: Any) -> None:
    fake.run_readings["team/rq one"] = {"step": {(): 5.0}}
    assert client.get("/api/runs/team%2Frq%20one/readings").json()["step"]["values"] == [[5.0]]


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_changed(client: Any, method: str) -> None:
    assert client.request(method, "/api/runs").status_code == 405


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/runs", "/api/runs/nobody/readings", "/nowhere"])
def test_every_answer_carries_the_security_headers(client: Any, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
