"""The judgement behind the first screen: readings in, tiles and one sentence out."""

from __future__ import annotations

import math

import pytest
from tests.daemon.web.training import Training

from vqwatch_daemon.health import SIGNS, headline, judge, tiles
from vqwatch_daemon.readings import Readings


def by_key(readings: Readings) -> dict[str, tuple[str, str]]:
    """Return verdict and value of every tile."""
    return {tile.key: (tile.verdict, tile.value) for tile in tiles(readings)}


def test_nothing_known_is_said_and_not_judged() -> None:
    assert {tile.verdict for tile in tiles({})} == {"unknown"}
    assert headline(tiles({})) == ("unknown", "No evidence yet.")


def test_every_verdict_has_a_sign_of_its_own() -> None:
    assert len(set(SIGNS.values())) == len(SIGNS)


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.75, "healthy"), (0.5, "concerning"), (0.39, "critical"), (1.0, "healthy")]
)
def test_utilization_is_judged_by_the_proposals_bands_but_full_use_is_healthy(value: float, verdict: str) -> None:
    readings: Readings = {"codebook_utilization_ratio": {("0",): 1.0, ("1",): value}}
    assert by_key(readings)["utilization"] == (verdict, f"{value:.0%}")


def test_perplexity_is_judged_by_the_layers_own_codebook_size() -> None:
    assert judge("codebook_perplexity", 30.0, 64) == "healthy"
    assert judge("codebook_perplexity", 30.0, 256) == "critical"
    readings: Readings = {
        "codebook_perplexity": {("small",): 30.0, ("large",): 120.0},
        "codebook_size": {("small",): 64.0, ("large",): 1024.0},
    }
    assert by_key(readings)["perplexity"] == ("critical", "120")


def test_a_loss_that_is_not_finite_is_critical_whatever_the_ratio() -> None:
    readings: Readings = {"loss": {("total",): math.nan}, "loss_vq_to_reconstruction_ratio": {(): 1.0}}
    assert by_key(readings)["loss"] == ("critical", "NaN")


def test_a_gradient_norm_that_is_not_finite_is_critical() -> None:
    assert by_key({"gradient_norm": {(): math.inf}})["gradients"][0] == "critical"


def test_nan_in_a_codebook_beats_revivals() -> None:
    readings: Readings = {
        "ema_revivals_per_step": {("0",): 0.0},
        "codebook_nonfinite_values": {("0",): 0.0, ("1",): 12.0},
    }
    assert by_key(readings)["ema"] == ("critical", "12 NaN")


def test_the_sentence_names_critical_alerts_first() -> None:
    verdict, sentence = headline(tiles({}), [("Slow", "warning"), ("Collapse", "critical"), ("Fyi", "info")])
    assert (verdict, sentence) == ("critical", "Critical: Collapse is firing.")


def test_the_sentence_names_what_is_outside_when_nothing_fires() -> None:
    readings: Readings = {"reconstruction_snr_db": {(): 12.0}, "gradient_norm": {(): 1.0}}
    assert headline(tiles(readings)) == ("concerning", "Concerning: reconstruction outside the healthy range.")


def test_what_watching_costs_does_not_make_a_codebook_sick() -> None:
    readings: Readings = {"emitter_overhead_ratio": {("0",): 0.2}, "gradient_norm": {(): 1.0}}
    assert by_key(readings)["sidecar"][0] == "concerning"
    assert headline(tiles(readings))[0] == "healthy"


def test_a_collapse_is_told_and_its_end_too() -> None:
    source = Training(0, collapse=1000)
    before, amid, after = (headline(tiles(source.readings(step)))[0] for step in (990, 1200, 1400))
    assert (before, amid, after) == ("concerning", "critical", "concerning")
