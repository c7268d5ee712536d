"""Some of the gallery on one seed; ``python -m tests.faults.report`` plays all of it on many."""

from __future__ import annotations

import os
import signal

import pytest
from faults import CATALOGUE as PLAYABLE
from tests.faults import gallery, processes
from tests.faults.catalogue import (
    CASES,
    HEALTHY,
    KILL,
    RANK_DRIFT,
    SILENT_RANK,
    STALL,
    Case,
    Judgement,
    judge,
)  # fmt: skip
from tests.faults.rows import Row

from vqwatch_daemon.catalogue import CATALOGUE as METRICS
from vqwatch_rules import load

QUICK = ("collapse", "nan-vector", "nan-loss", "churn", "vanishing-gradients", "low-pass")
PROCESS_CASES = (STALL, KILL, SILENT_RANK, RANK_DRIFT)


def judged(outcome: gallery.Outcome) -> Judgement:
    return Row.of(outcome.setting.quantizer, outcome.fault, outcome.seed, outcome.fired, "", {}).judgement


def case(fault: str) -> Case:
    return next(item for item in CASES if item.fault == fault)


def test_healthy_training_raises_neither_warning_nor_critical(warm: gallery.Warm) -> None:
    assert warm.fired == []


def test_healthy_training_with_batches_of_32_codes_raises_neither(quiet_threads: None) -> None:
    setting = gallery.Setting("ema", **gallery.SMALL)
    assert gallery.warm_up(setting, 0, 500).fired == []


def test_healthy_training_reaches_the_healthy_bands(warm: gallery.Warm) -> None:
    layers = range(8)
    readings = warm.readings
    assert min(readings["codebook_utilization_ratio"][str(layer),] for layer in layers) > 0.6
    assert min(readings["codebook_perplexity"][str(layer),] for layer in layers) > 100
    assert max(readings["codebook_dead_ratio"][str(layer),] for layer in layers) < 0.2
    assert max(readings["ema_revivals_per_step"][str(layer),] for layer in layers) < 5
    assert min(readings["residual_gain_db"][str(layer),] for layer in layers) > 0.05
    assert readings["reconstruction_snr_db"][()] > 15
    assert 0.1 < readings["loss_vq_to_reconstruction_ratio"][()] < 2
    assert readings["gradient_norm"][()] < 5


def test_going_on_after_a_restart_of_the_trainer_is_no_alarm(warm: gallery.Warm) -> None:
    outcome = gallery.perform(warm, HEALTHY.fault, 60)
    assert outcome.fired == []


@pytest.mark.parametrize("fault", QUICK)
def test_a_fault_raises_its_alerts_in_time_and_no_others(warm: gallery.Warm, fault: str) -> None:
    chosen = case(fault)
    outcome = gallery.perform(warm, fault, chosen.lasts, from_start=chosen.from_start)
    assert judged(outcome).good, judged(outcome)


def test_frames_out_of_order_are_told_as_such(warm: gallery.Warm) -> None:
    fired = {one.name: one.step for one in gallery.perform(warm, "scrambled", 20).fired}
    assert fired["VqTemporalOrderLost"] <= 15


def test_collapse_is_resolved_once_it_is_over(warm: gallery.Warm) -> None:
    outcome = gallery.perform(warm, "collapse", case("collapse").lasts, recovers=200)
    assert "VqCodebookCollapse" in {one.name for one in outcome.fired}
    assert not outcome.unresolved & {
        "VqCodebookCollapse", "VqDeadCodes", "VqEntropyDrop", "VqLayerUtilizationLow", "VqMeanUtilizationLow",
        "VqPerplexityLow",
    }  # fmt: skip


def test_a_loop_that_hangs_is_told_and_is_over_when_it_goes_on(warm: gallery.Warm) -> None:
    outcome = gallery.stand_still(warm, 90.0)
    assert judged(outcome).good, outcome
    assert outcome.unresolved == set()


def test_a_killed_trainer_is_told(quiet_threads: None) -> None:
    outcome = processes.killed(seed=0)
    assert judged(outcome).good, outcome


def test_the_catalogue_names_faults_and_alerts_that_exist() -> None:
    rules = {rule.alert for rule in load([], {name: metric.labels for name, metric in METRICS.items()}).rules}
    named = {name for item in (*CASES, *PROCESS_CASES) for name in {*item.must, *item.also}}
    assert named <= rules
    assert {item.fault for item in (*CASES, *PROCESS_CASES)} == set(PLAYABLE)


def test_an_alert_that_comes_too_late_is_missed() -> None:
    assert judge(Case("x", 10, {"VqA": 5}), {"VqA": 6}) == Judgement({"VqA": None}, frozenset())


def test_the_kill_fault_kills() -> None:
    child = os.fork()
    if child == 0:
        with PLAYABLE["kill"](None):  # type: ignore[arg-type]  # it looks at nothing
            pass
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
