"""The client against real Alertmanagers with a webhook behind them, and against ones that misbehave."""

from __future__ import annotations

import base64
import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.servers import Alertmanager, Webhook, free_port, wait_for

from vqwatch_daemon.alertmanager import Alertmanagers
from vqwatch_daemon.alertmanager_http import AlertmanagerError, parse

from .alerts import FakeAlert, firing, resolved


class Peer:
    """An HTTP server that answers POSTs as told and keeps what it was sent: for what no real one does at will."""

    def __init__(self, status: int = 200, delay: float = 0.0) -> None:
        self.status = status
        self.requests: list[tuple[dict[str, str], list[dict[str, Any]]]] = []
        self.connections = 0
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                peer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                peer.requests.append((dict(self.headers), json.loads(body)))
                time.sleep(delay)
                self.send_response(peer.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that gives up is what some of these tests are about."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Start peers: ``peer(status=200, delay=0.0)``."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(closing(Peer(**options)))


@pytest.fixture
def client() -> Iterator[Callable[..., Alertmanagers]]:
    """Start clients that are closed in the end: ``client(*urls, **options)``."""
    with ExitStack() as stack:

        def start(*urls: str, **options: Any) -> Alertmanagers:
            alertmanagers = Alertmanagers(urls, **options)
            stack.callback(alertmanagers.close, 5.0)
            return alertmanagers

        yield start


def test_an_alert_reaches_the_webhook_within_50_ms_and_so_does_its_end(
    alertmanager: Alertmanager, webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    alertmanagers = client(alertmanager.url, generator_url="http://node7:9815/")
    alertmanagers.update([firing("VqWarmUp", at=time.time())], time.time())  # opens the connection
    webhook.wait_for_alert(alertname="VqWarmUp")

    delays = []
    for layer in range(8):
        fired_at, asked = time.time(), time.monotonic()
        alertmanagers.update([firing(f"VqAlert{layer}", at=fired_at)], fired_at)
        webhook.wait_for_alert(alertname=f"VqAlert{layer}")
        delays.append(next(at for at, payload in webhook.received if f"VqAlert{layer}" in str(payload)) - asked)
    delays.sort()
    print(f"update() to webhook: median {delays[4] * 1e3:.1f} ms, slowest {delays[-1] * 1e3:.1f} ms")
    assert delays[4] < 0.05

    webhook.wait_for_alert("resolved", alertname="VqWarmUp")
    alert = webhook.wait_for_alert(alertname="VqAlert7")
    assert alert["generatorURL"] == "http://node7:9815/"
    assert alert["annotations"] == {"summary": "VqAlert7 fires."}
    [counts] = alertmanagers.counts().values()
    assert (counts.failures, counts.dropped, counts.queued, counts.error) == (0, 0, 0, "")
    assert counts.sent >= 16


def test_what_is_sent_again_is_notified_once(
    alertmanager: Alertmanager, webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    alertmanagers = client(alertmanager.url, resend_seconds=0.2)
    alert = firing(at=time.time())
    for _ in range(12):
        alertmanagers.update([alert], time.time())
        time.sleep(0.1)
    assert sum(counts.sent for counts in alertmanagers.counts().values()) >= 4
    assert len(webhook.alerts(alertname="VqLossNotFinite")) == 1
    [held] = alertmanager.alerts(alertname="VqLossNotFinite")
    assert held["endsAt"] > held["updatedAt"]


def test_an_alert_that_is_not_told_again_ends_after_four_intervals(
    alertmanager: Alertmanager, webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    alertmanagers = client(alertmanager.url, resend_seconds=0.5)
    alertmanagers.update([firing(at=time.time())], time.time())
    ended = webhook.wait_for_alert("resolved", alertname="VqLossNotFinite")
    assert dt.datetime.fromisoformat(ended["startsAt"]) < dt.datetime.fromisoformat(ended["endsAt"])


def test_an_alertmanager_that_restarted_is_told_again(
    alertmanager: Alertmanager, webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    alertmanagers = client(alertmanager.url, resend_seconds=1.0)
    alert = firing(at=time.time())
    alertmanagers.update([alert], time.time())
    webhook.wait_for_alert(alertname="VqLossNotFinite")
    alertmanager.restart()  # it keeps no alerts over a restart
    assert alertmanager.alerts() == []

    def told_again() -> list[dict[str, Any]]:
        alertmanagers.update([alert], time.time())
        return alertmanager.alerts(alertname="VqLossNotFinite")

    [held] = wait_for(told_again, 10.0, "the alert after the restart", pause=0.1)
    assert [counts.failures for counts in alertmanagers.counts().values()] == [0], "the kept connection was opened anew"
    [first] = webhook.alerts(alertname="VqLossNotFinite")  # the API writes trailing zeros, the webhook does not
    assert dt.datetime.fromisoformat(held["startsAt"]) == dt.datetime.fromisoformat(first["startsAt"])
    alertmanagers.update([resolved(at=alert.fired_at or 0.0, end=time.time())], time.time())
    webhook.wait_for_alert("resolved", alertname="VqLossNotFinite")
    assert sum(alert["status"] == "firing" for alert in webhook.alerts(alertname="VqLossNotFinite")) == 1


def test_a_restarted_daemon_neither_repeats_nor_forgets_nor_ends_an_alert(
    alertmanager: Alertmanager, webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    still, over = firing("VqStill", at=time.time()), firing("VqOver", at=time.time())
    before = client(alertmanager.url)
    before.update([still, over], time.time())
    webhook.wait_for_alert(alertname="VqStill")
    webhook.wait_for_alert(alertname="VqOver")
    before.close(5.0)
    state = json.loads(json.dumps(before.state()))

    after = client(alertmanager.url)
    after.restore(state)
    after.update([still], time.time())
    webhook.wait_for_alert("resolved", alertname="VqOver")
    assert [alert["status"] for alert in webhook.alerts(alertname="VqStill")] == ["firing"]
    assert sum(counts.sent for counts in after.counts().values()) == 1


def test_one_malformed_alert_among_good_ones_hurts_only_itself(
    alertmanager: Alertmanager, webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    alertmanagers = client(alertmanager.url, resend_seconds=1.0)
    now = time.time()
    alerts = [firing("VqGood", at=now, layer=str(layer)) for layer in range(20)]
    bad = FakeAlert("firing", {**firing().labels, "alertname": "VqBad", "not-a-name": "x"}, {}, fired_at=now)
    alertmanagers.update([*alerts[:7], bad, *alerts[7:]], now)
    wait_for(lambda: len(alertmanager.alerts(alertname="VqGood")) == 20, what="all good alerts")
    wait_for(lambda: [(c.sent, c.failures) for c in alertmanagers.counts().values()] == [(20, 1)], what="the counts")

    alertmanagers.update([*alerts[:7], bad, *alerts[7:]], now + 5.0)
    wait_for(
        lambda: [(c.sent, c.failures) for c in alertmanagers.counts().values()] == [(40, 2)], what="the second round"
    )
    assert alertmanager.alerts(alertname="VqBad") == []


def test_a_bad_alert_met_again_travels_alone(peer: Callable[..., Peer], client: Callable[..., Alertmanagers]) -> None:
    other = peer(status=400)
    alertmanagers = client(other.url)
    now = time.time()
    alertmanagers.update([firing("VqA", at=now), firing("VqB", at=now)], now)
    wait_for(lambda: alertmanagers.counts()[other.url].failures == 2, what="the pair and each of them")
    other.status = 200
    alertmanagers.update([firing("VqA", at=now), firing("VqB", at=now)], now + 61)
    wait_for(lambda: alertmanagers.counts()[other.url].sent == 2, what="each of them again")
    assert [len(alerts) for _, alerts in other.requests] == [2, 1, 1, 1, 1]
    alertmanagers.update([firing("VqA", at=now), firing("VqB", at=now)], now + 122)
    wait_for(lambda: len(other.requests) == 6, what="both in one again, having been accepted")
    assert len(other.requests[-1][1]) == 2


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_failure_that_no_alert_is_to_blame_for_is_counted_and_not_repeated_blindly(
    status: int, peer: Callable[..., Peer], client: Callable[..., Alertmanagers]
) -> None:
    other = peer(status=status)
    alertmanagers = client(other.url)
    now = time.time()
    alertmanagers.update([firing(at=now), firing("VqB", at=now)], now)
    wait_for(lambda: alertmanagers.counts()[other.url].failures == 2, what="the failure")
    alertmanagers.update([firing(at=now), firing("VqB", at=now)], now + 1)
    other.status = 200
    alertmanagers.update([firing(at=now), firing("VqB", at=now)], now + 7)
    wait_for(lambda: alertmanagers.counts()[other.url].sent == 2, what="the next due time")
    assert len(other.requests) == 2


@pytest.mark.alone
def test_slow_and_dead_alertmanagers_do_not_delay_the_good_one(
    alertmanager: Alertmanager, webhook: Webhook, peer: Callable[..., Peer], client: Callable[..., Alertmanagers]
) -> None:
    slow, dead = peer(delay=30.0), f"http://127.0.0.1:{free_port()}"
    with socket.socket() as hole:  # accepts connections and never answers
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        black_hole = f"http://127.0.0.1:{hole.getsockname()[1]}"
        alertmanagers = client(slow.url, dead, black_hole, alertmanager.url, post_seconds=0.5)
        began = time.monotonic()
        for layer in range(5):
            now = time.time()
            asked = time.monotonic()
            alertmanagers.update([firing("VqA", at=now, layer=str(layer), run=f"run{layer}")], now)
            assert time.monotonic() - asked < 0.1
            webhook.wait_for_alert(alertname="VqA", layer=str(layer), timeout=2.0)
        assert time.monotonic() - began < 2.0
        wait_for(
            lambda: all(alertmanagers.counts()[url].failures for url in (slow.url, dead, black_hole)),
            what="the failures",
        )
        assert alertmanagers.counts()[alertmanager.url].failures == 0
        assert "refused" in alertmanagers.counts()[dead].error


def test_two_alertmanagers_are_both_told(
    start_alertmanager: Callable[..., Alertmanager], client: Callable[..., Alertmanagers]
) -> None:
    first, second = start_alertmanager(), start_alertmanager()
    alertmanagers = client(first.url, second.url)
    alertmanagers.update([firing(at=time.time())], time.time())
    for server in (first, second):
        wait_for(lambda server=server: server.alerts(alertname="VqLossNotFinite"), what="the alert")


def test_a_critical_alert_mutes_its_warning_though_both_come_at_once(
    start_alertmanager: Callable[..., Alertmanager], webhook: Webhook, client: Callable[..., Alertmanagers]
) -> None:
    server = start_alertmanager(
        {
            "route": {
                "receiver": "webhook",
                "group_by": ["alertname", "run"],
                "group_wait": "1s",
                "group_interval": "1s",
            },
            "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook.url}]}],
            "inhibit_rules": [
                {
                    "source_matchers": ['severity="critical"'],
                    "target_matchers": ['severity="warning"'],
                    "equal": ["alertname", "run", "layer"],
                }
            ],
        }
    )
    now = time.time()
    client(server.url).update(
        [firing("VqA", now, "warning", layer="0"), firing("VqA", now, "critical", layer="0")], now
    )
    webhook.wait_for_alert(alertname="VqA", severity="critical")
    time.sleep(1.2)
    assert webhook.alerts(severity="warning") == []


def test_alerts_go_in_batches_over_one_kept_connection(
    peer: Callable[..., Peer], client: Callable[..., Alertmanagers]
) -> None:
    other = peer()
    alertmanagers = client(other.url)
    now = time.time()
    alertmanagers.update([firing("VqMany", at=now, layer=str(layer)) for layer in range(600)], now)
    wait_for(lambda: alertmanagers.counts()[other.url].sent == 600, what="600 alerts")
    assert [len(alerts) for _, alerts in other.requests] == [256, 256, 88]
    assert other.connections == 1


def test_a_full_queue_drops_the_oldest_and_counts_them(
    peer: Callable[..., Peer], client: Callable[..., Alertmanagers]
) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        alertmanagers = client(url, capacity=10, post_seconds=0.5)
        now = time.time()
        alertmanagers.update([firing(at=now)], now)
        wait_for(lambda: alertmanagers.counts()[url].queued == 0, what="the first to be on its way")
        alertmanagers.update([firing("VqMany", at=now, layer=str(layer)) for layer in range(25)], now)
        counts = alertmanagers.counts()[url]
    assert (counts.queued, counts.dropped) == (10, 15 + 1)


def test_close_sends_what_is_queued(peer: Callable[..., Peer]) -> None:
    other = peer(delay=0.05)
    alertmanagers = Alertmanagers([other.url])
    now = time.time()
    for number in range(5):
        alertmanagers.update([firing(f"VqA{number}", at=now)], now)
    alertmanagers.close(timeout=5.0)
    told = {alert["labels"]["alertname"] for _, alerts in other.requests for alert in alerts}
    assert told == {f"VqA{number}" for number in range(5)}


@pytest.mark.alone
def test_close_gives_up_in_time_and_leaves_no_thread_behind() -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        alertmanagers = Alertmanagers([f"http://127.0.0.1:{hole.getsockname()[1]}"])
        alertmanagers.update([firing(at=time.time())], time.time())
        time.sleep(0.1)
        asked = time.monotonic()
        alertmanagers.close(timeout=0.3)
        assert time.monotonic() - asked < 1.0
        wait_for(
            lambda: not any(t.name.startswith("alertmanager ") for t in threading.enumerate()),
            timeout=3.0,
            what="the thread's end",
        )


def test_credentials_in_the_url_become_basic_authentication_and_show_nowhere(
    peer: Callable[..., Peer], client: Callable[..., Alertmanagers]
) -> None:
    other = peer(status=403)
    url = other.url.replace("//", "//me:p%40ss@") + "/prefix/"
    alertmanagers = client(url, headers={"X-Scope-OrgID": "team"})
    alertmanagers.update([firing(at=time.time())], time.time())
    wait_for(lambda: [c for c in alertmanagers.counts().values() if c.error], what="the refusal")
    headers, _ = other.requests[0]
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert headers["X-Scope-OrgID"] == "team"
    assert "ss@" not in f"{alertmanagers.counts()} {alertmanagers.state()}"


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:9093", "ftp://host", "http://", "http://host:99999", "http://host/?x=1", "http://u:geheim@/"]
)
def test_a_malformed_url_is_refused_by_name_and_without_its_password(url: str) -> None:
    with pytest.raises(AlertmanagerError, match="Alertmanager URL") as caught:
        parse(url)
    assert "geheim" not in str(caught.value)


def test_a_spoilt_saved_state_is_refused_and_harmless(
    peer: Callable[..., Peer], client: Callable[..., Alertmanagers]
) -> None:
    other = peer()
    alertmanagers = client(other.url)
    with pytest.raises(ValueError, match="unreadable"):
        alertmanagers.restore({other.url: [{"labels": 3}]})
    alertmanagers.update([firing(at=time.time())], time.time())
    wait_for(lambda: alertmanagers.counts()[other.url].sent == 1, what="the alert")
