"""Codes have series of their own where that was asked for, whole layers at a time, never more than allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.messages import Trainer, layers

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.exposition import lines
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.per_code import PerCode
from vqwatch_rules import Engine, load

VOCABULARY = {name: metric.labels for name, metric in CATALOGUE.items()}
NAME = "vqwatch_codebook_code_assignments"


def hub(most: int, window: int = 100) -> Hub:
    return Hub(Book("d"), Engine(load([], VOCABULARY)), per_code_series=most, window=window)


def train(here: Hub, run: str = "r", steps: int = 5, count: int = 2) -> None:
    trainer = Trainer(run=run, session=run)
    here.receive(b"p", trainer.hello(layers(count, size=4)), 0.0)
    for step in range(steps):
        here.receive(b"p", trainer.codes(step, [[layer, layer, 3] for layer in range(count)]), float(step))


def scraped(here: Hub) -> dict[tuple[str, str, str], float]:
    text = "".join(lines(here.snapshot(), openmetrics=False))
    return {
        (sample.labels["run"], sample.labels["layer"], sample.labels["code"]): sample.value
        for family in text_string_to_metric_families(text)
        if family.name == NAME
        for sample in family.samples
    }


def test_nobody_has_series_of_codes_who_did_not_ask() -> None:
    here = hub(0)
    train(here)
    assert scraped(here) == {}
    assert here.own_readings()["series_capped_total"] == {(): 0.0}


def test_every_code_has_a_counter_over_the_whole_run_also_what_was_never_used() -> None:
    here = hub(100, window=2)  # the window forgets, the counters do not
    train(here, steps=5)
    assert scraped(here) == {
        ("r", "0", "0"): 10, ("r", "0", "1"): 0, ("r", "0", "2"): 0, ("r", "0", "3"): 5,
        ("r", "1", "0"): 0, ("r", "1", "1"): 10, ("r", "1", "2"): 0, ("r", "1", "3"): 5,
    }  # fmt: skip


def test_the_cap_cuts_whole_layers_and_says_how_many_series_once() -> None:
    here = hub(7)
    train(here)
    assert {layer for _, layer, _ in scraped(here)} == {"0"}
    scraped(here)
    assert here.own_readings()["series_capped_total"] == {(): 4.0}


def test_what_a_run_leaves_behind_goes_to_the_next() -> None:
    here = hub(8)
    train(here, "a")
    train(here, "b")
    assert {run for run, _, _ in scraped(here)} == {"a"}
    here.forget("a")
    assert {run for run, _, _ in scraped(here)} == {"b"}


def test_counters_outlive_the_daemon() -> None:
    here, after = hub(8), hub(8)
    train(here)
    after.restore(here.state())
    assert scraped(after) == scraped(here)


def test_they_reach_no_rule_and_no_observer() -> None:
    here = hub(8)
    train(here)
    assert "codebook_code_assignments_total" not in here.runs["r"].readings


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50)), max_size=8), st.integers(0, 120))
def test_the_cap_holds_and_who_has_series_keeps_them(history: list[dict[str, int]], most: int) -> None:
    per_code = PerCode(most)
    before: dict[tuple[str, str], int] = {}
    for sizes in history:
        keys = {("r", layer): size for layer, size in sizes.items()}
        chosen = per_code.choose(keys)
        assert sum(keys[key] for key in chosen) <= most
        assert {key for key, size in before.items() if keys.get(key) == size} <= set(chosen)
        before = {key: keys[key] for key in chosen}
