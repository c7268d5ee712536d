"""What a script or a scraper gets over HTTP."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from vqwatch_daemon.history import History


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


@pytest.fixture
def stored(fake: Any, tmp_path: Any) -> Any:
    """The store of a daemon that keeps a history, with 200 samples in it and a run that has long ended."""
    with History(tmp_path / "history.db") as store:
        for step in range(200):
            store.record("rq-512", step, 1_790_000_000.0 + step, {"loss": {("total",): 1.0 + step, ("vq",): math.nan}})
        store.record("old", 7, 1_780_000_000.0, {"reconstruction_snr_db": {(): 12.0}})
        store.record_usage("rq-512", 50, 1_790_000_050.0, {"0": [5, 0, 1, 2]})
        store.record_alert({"run": "rq-512", "time": 1.0, "name": "NanLoss", "to": "firing", "value": math.nan})
        assert store.flush()
        fake.store = store
        yield store


def test_curves_come_thinned_and_without_nan(client: Any, stored: Any) -> None:
    answer = client.get("/api/runs/rq-512/series?metric=loss&metric=unknown&points=10")
    curve = answer.json()["loss"]
    assert curve["series"] == [["total"], ["vq"]]
    assert len(curve["step"]) == 10
    assert curve["high"][0][-1] == 200.0
    assert set(curve["value"][1]) == {"NaN"}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "metric"),
        ("?metric=loss&by=moon", "by"),
        ("?metric=loss&points=1", "points"),
        ("?metric=loss&points=nan", "points"),
        ("?metric=loss&start=abc", "start"),
        ("?" + "&".join(f"metric=m{i}" for i in range(65)), "metric"),
    ],
)
def test_a_question_that_makes_no_sense_is_a_400_that_names_the_parameter(
    client: Any, stored: Any, query: str, reason: str
) -> None:
    answer = client.get(f"/api/runs/rq-512/series{query}")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(reason)


def test_without_a_history_curves_are_a_404_that_says_what_to_do(client: Any) -> None:
    answer = client.get("/api/runs/rq-512/series?metric=loss")
    assert answer.status_code == 404
    assert "--state" in answer.json()["error"]


def test_usage_is_given_now_at_a_step_and_sorted(client: Any, stored: Any) -> None:
    now = client.get("/api/runs/rq-512/usage").json()
    assert now["layers"]["3"] == {"size": 256, "used": 256, "total": 1024, "values": [4] * 256}
    then = client.get("/api/runs/rq-512/usage?step=60&order=sorted").json()
    assert (then["step"], then["layers"]["0"]["values"]) == (50, [5, 2, 1, 0])
    assert client.get("/api/runs/rq-512/usage?step=10").status_code == 404
    assert client.get("/api/runs/rq-512/usage/steps").json() == [[50, 1_790_000_050.0]]


def test_a_large_codebook_comes_no_wider_than_asked(client: Any, fake: Any) -> None:
    fake.run_usage["rq-512"] = {"0": [1] * 65536}
    row = client.get("/api/runs/rq-512/usage?columns=512").json()["layers"]["0"]
    assert (row["size"], row["used"], row["values"]) == (65536, 65536, [1.0] * 512)


def test_runs_that_only_the_history_knows_are_listed_last(client: Any, stored: Any) -> None:
    assert [(run["name"], run["state"]) for run in client.get("/api/runs").json()] == [
        ("rq-512", "live"),
        ("old", "past"),
    ]
    assert client.get("/api/runs/old/readings").json()["reconstruction_snr_db"]["values"] == [[12.0]]
    assert client.get("/api/runs/old/overview").json()["verdict"] == "concerning"


def test_the_alert_log_can_hold_nan(client: Any, stored: Any) -> None:
    (entry,) = client.get("/api/alerts/log?run=rq-512").json()
    assert entry["value"] == "NaN"


def test_the_overview_has_a_tile_per_group(client: Any, fake: Any) -> None:
    fake.run_readings["rq-512"]["codebook_size"] = {(str(i),): 256.0 for i in range(8)}
    overview = client.get("/api/runs/rq-512/overview").json()
    tiles = {tile["key"]: tile for tile in overview["tiles"]}
    assert (tiles["perplexity"]["verdict"], tiles["perplexity"]["value"]) == ("healthy", "193")
    assert (tiles["loss"]["verdict"], tiles["loss"]["value"]) == ("critical", "NaN")
    assert tiles["dead"]["verdict"] == "unknown"
    assert overview["verdict"] == "critical"


def test_the_catalogue_is_served_with_bands(client: Any) -> None:
    metric = client.get("/api/catalogue").json()["reconstruction_snr_db"]
    assert (metric["unit"], metric["bands"]["healthy"]) == ("dB", [15, None])


def test_a_runbook_is_a_page_and_raw_html_in_it_is_text(client: Any, fake: Any) -> None:
    fake.runbooks["CodebookCollapse"] = "# Collapse\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1))\n"
    answer = client.get("/runbooks/CodebookCollapse")
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>Collapse</h1>" in answer.text
    assert "<script" not in answer.text
    assert 'href="javascript' not in answer.text


def test_an_unknown_runbook_says_so_and_shows_the_name_as_text(client: Any) -> None:
    answer = client.get("/runbooks/%3Cimg%20src=x%20onerror=alert(1)%3E")
    assert answer.status_code == 404
    assert "<img" not in answer.text


def test_static_files_are_compressed_kept_for_ever_and_not_sent_twice(client: Any) -> None:
    page = client.get("/").text
    address = re.findall(r'src="(/static/[^"]+/main.js)"', page)[0]
    first = client.get(address)
    assert first.headers["content-encoding"] == "gzip"
    assert "immutable" in first.headers["cache-control"]
    again = client.get(address, headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


def test_plotly_comes_from_the_installed_package_compressed(client: Any) -> None:
    address = re.findall(r'data-plotly="([^"]+)"', client.get("/").text)[0]
    answer = client.get(address)
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < 1_700_000
    assert "plotly.js" in answer.text[:200]
    assert client.get(address, headers={"accept-encoding": "identity"}).headers.get("content-encoding") is None


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/x/nothing.js", "/static/%2e%2e/app.py"])
def test_only_the_pages_own_files_are_served(client: Any, path: str) -> None:
    assert client.get(path).status_code == 404
