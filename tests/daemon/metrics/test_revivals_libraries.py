"""Defects of published quantizer libraries, reproduced with the libraries themselves and seen by the readings."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.emitter.families import libraries
from tests.messages import Trainer

from vqwatch.wire import Layer
from vqwatch_daemon.metrics.ema import mismatch
from vqwatch_daemon.metrics.geometry import geometry
from vqwatch_daemon.metrics.revivals import Snapshot, Unreplaced, revivals, threshold_to_uniform_ratio
from vqwatch_daemon.run import Run


def encodec_module() -> Any:
    return libraries.library("encodec.quantization.core_vq", "encodec", "encodec.quantization")


def audiocraft_module() -> Any:
    libraries.audiocraft()
    return libraries.library("audiocraft.quantization.core_vq")


both = pytest.mark.parametrize("module", [encodec_module, audiocraft_module], ids=["encodec", "audiocraft"])


def lucidrains(**options: Any) -> Any:
    torch.manual_seed(0)
    return importlib.import_module("vector_quantize_pytorch").VectorQuantize(**options).train()


def snapshot(step: int, leaf: Any) -> Snapshot:
    return Snapshot(step, leaf.cluster_size.numpy().copy(), leaf.embed.detach().numpy().copy())


def counted(indices: Any, codes: int) -> NDArray[np.int64]:
    return np.bincount(indices.numpy().reshape(-1), minlength=codes)[None]


@pytest.mark.parametrize("decay", [0.8, 0.99])
def test_every_replacement_that_lucidrains_makes_is_found_and_no_other(decay: float) -> None:
    layer = lucidrains(dim=8, codebook_size=32, decay=decay, threshold_ema_dead_code=1)
    leaf = layer._codebook
    replaced: list[NDArray[np.bool_]] = []
    replace = leaf.replace

    def recorded(batch_samples: Any, batch_mask: Any, **options: Any) -> Any:
        replaced.append(batch_mask[0].numpy().copy())
        return replace(batch_samples, batch_mask=batch_mask, **options)

    leaf.replace = recorded
    before, revived = snapshot(0, leaf), 0
    for step in range(1, 40):
        replaced.clear()
        _, indices, _ = layer(torch.randn(4, 16, 8) * 0.3 + 1)
        after = snapshot(step, leaf)
        found = revivals(before, after, decay=decay, counts=counted(indices, 32))
        truth = replaced[0] if replaced else np.zeros(32, bool)
        # A size that misses the threshold by less than the law can resolve is reset by as little.
        doubtful = np.abs(
            after.cluster_size[0] - (decay * before.cluster_size[0] + (1 - decay) * counted(indices, 32)[0])
        )
        assert found is not None
        assert (found.mask[0] == truth)[~truth | (doubtful > 2e-3)].all()
        revived += found.count
        before = after
    assert revived > 0


@both
def test_a_replacement_that_never_survives_is_seen(module: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    leaf = module().EuclideanCodebook(dim=8, codebook_size=64, kmeans_init=False, decay=0.8, threshold_ema_dead_code=2)
    leaf.train()
    state, share, revived = Unreplaced(64, patience=50), math.nan, 0
    before = snapshot(0, leaf)
    state.update(0, before.cluster_size, 2.0, None)
    for step in range(1, 101):
        _, indices = leaf(torch.randn(4, 16, 8) * 0.3 + 1)
        after = snapshot(step, leaf)
        found = revivals(before, after, decay=0.8, counts=counted(indices, 64))
        assert found is not None
        revived += found.count
        share = state.update(step, after.cluster_size, 2.0, found.mask)
        before = after
    assert revived == 0
    assert share > 0.3


def test_the_replacement_of_lucidrains_is_never_overdue() -> None:
    layer = lucidrains(dim=8, codebook_size=64, decay=0.8, threshold_ema_dead_code=2)
    state = Unreplaced(64, patience=20)
    before = snapshot(0, layer._codebook)
    state.update(0, before.cluster_size, 2.0, None)
    for step in range(1, 61):
        _, indices, _ = layer(torch.randn(4, 16, 8) * 0.3 + 1)
        after = snapshot(step, layer._codebook)
        found = revivals(before, after, decay=0.8, counts=counted(indices, 64))
        assert found is not None
        assert state.update(step, after.cluster_size, 2.0, found.mask) == 0
        before = after


@both
def test_a_k_means_initialisation_that_shrinks_the_codebook_is_seen(module: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    leaf = module().EuclideanCodebook(dim=32, codebook_size=64, kmeans_init=True, kmeans_iters=10, decay=0.99)
    leaf.train()
    latents = torch.randn(64, 32).repeat(32, 1) + 0.3 * torch.randn(2048, 32)
    leaf(latents[None])
    assert mismatch(leaf.embed.numpy(), latents.numpy()).norm_ratio < 0.2
    sound = lucidrains(dim=32, codebook_size=64, kmeans_init=True, decay=0.99)
    sound(latents[None])
    assert mismatch(sound._codebook.embed.detach().numpy(), latents.numpy()).norm_ratio > 0.7


@pytest.mark.parametrize("library", ["encodec", "audiocraft", "lucidrains"])
def test_one_nan_vector_that_poisons_the_whole_codebook_is_seen_there_and_in_the_next_clean_codes(library: str) -> None:
    torch.manual_seed(0)
    if library == "lucidrains":
        layer = lucidrains(dim=8, codebook_size=64, decay=0.9)
        leaf = layer._codebook
    else:
        module = encodec_module() if library == "encodec" else audiocraft_module()
        leaf = layer = module.EuclideanCodebook(dim=8, codebook_size=64, kmeans_init=False, decay=0.9)
        layer.train()
    run, trainer = Run("r", 1, now=0.0), Trainer()
    run.apply(trainer.hello((Layer("0", "ema", 64, 8, decay=0.9),)), 0.0)

    def train(step: int, latents: Any) -> None:
        indices = layer(latents)[1]
        run.apply(trainer.codes(step, indices.numpy().reshape(1, 1, -1)), float(step))
        book = leaf.embed.detach().numpy().reshape(64, 8)
        run.apply(
            trainer.codebooks(step, codebook={"0": book}, cluster_size={"0": leaf.cluster_size.reshape(64).numpy()}),
            float(step),
        )

    train(1, torch.randn(1, 256, 8))
    assert run.readings["codebook_nonfinite_values"] == {("0",): 0.0}
    assert run.readings["codebook_zero_index_ratio"]["0",] < 0.5
    spoilt = torch.randn(1, 256, 8)
    spoilt[0, 17] = math.nan
    train(2, spoilt)
    assert run.readings["codebook_nonfinite_values"]["0",] >= 64 * 8
    assert run.readings["nonfinite_total"]["codebook",] >= 64 * 8
    assert math.isnan(geometry(leaf.embed.detach().numpy().reshape(64, 8)).effective_rank)
    train(3, torch.randn(1, 256, 8))
    assert run.readings["codebook_zero_index_ratio"] == {("0",): 1.0}
    assert run.readings["codebook_nonfinite_values"]["0",] >= 64 * 8


def test_churn_is_seen_and_was_to_be_foreseen() -> None:
    layer = lucidrains(dim=8, codebook_size=256, decay=0.9, threshold_ema_dead_code=2)
    before, churn = snapshot(0, layer._codebook), []
    for step in range(1, 31):
        _, indices, _ = layer(torch.randn(1, 128, 8))
        after = snapshot(step, layer._codebook)
        found = revivals(before, after, decay=0.9, counts=counted(indices, 256))
        assert found is not None
        churn.append(found.churn_ratio)
        before = after
    assert min(churn[10:]) > 0.3
    assert threshold_to_uniform_ratio(2, 128, 256) == 4
