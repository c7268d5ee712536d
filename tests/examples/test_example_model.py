"""The example's model: masks mean what they say, the EMA is the textbook's, dead codes come back."""

from __future__ import annotations

import documents
import pytest
import torch
import train_documents
from model import VectorQuantizerEMA
from tests.emitter.families.libraries import skeleton

QUANTIZERS = ["ema", "lucidrains", "moshi"]


@pytest.fixture(autouse=True)
def moshi_without_its_servers() -> None:
    """Put moshi in place for its quantizer alone; the rest of it wants audio libraries."""
    skeleton("moshi")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    train, _ = documents.load()
    return next(documents.batches(train, 8, 32, seed=0))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_masked_frames_have_no_code(quantizer: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, mask = batch
    codes = train_documents.build_model(quantizer, 32)(features, mask).codes
    assert codes.shape == (8, 32, 8)
    assert (codes[~mask] == -1).all()
    assert ((codes[mask] >= 0) & (codes[mask] < 256)).all()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_what_is_masked_changes_nothing(quantizer: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, mask = batch
    model = train_documents.build_model(quantizer, 32)
    model(features, mask)
    model.eval()
    noise = torch.where(mask[..., None], features, torch.randn_like(features))
    clean, noisy = model(features, mask), model(noise, mask)
    assert torch.equal(clean.codes, noisy.codes)
    assert torch.allclose(clean.losses["total"], noisy.losses["total"])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantized_frames_pass_gradients_straight_through(
    quantizer: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = train_documents.build_model(quantizer, 32)
    model(*batch).losses["total"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder_out.parameters())


def test_codes_that_moshi_replaces_keep_no_graph(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = train_documents.build_model("moshi", 32)
    for _ in range(12):  # it looks for dead codes at every fifth step
        model(*batch)
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_one_update_is_the_moving_average_of_counts_and_sums() -> None:
    torch.manual_seed(0)
    layer = VectorQuantizerEMA(8, 4, decay=0.9, dead_code_threshold=0.0)
    vectors, mask = torch.randn(1, 64, 4), torch.ones(1, 64, dtype=torch.bool)
    layer(vectors, mask)
    counts, sums = layer.ema_cluster_size.clone(), layer.ema_w.clone()
    _, indices = layer(vectors, mask)
    for code in range(8):
        members = vectors[0][indices[0] == code]
        count = 0.9 * counts[code] + 0.1 * len(members)
        total = 0.9 * sums[code] + 0.1 * members.sum(0)
        assert torch.allclose(layer.ema_cluster_size[code], count)
        assert torch.allclose(layer.embedding[code], total / count, atol=1e-5)


def test_frames_are_quantized_with_the_codes_from_before_the_update() -> None:
    layer = VectorQuantizerEMA(8, 4)
    vectors, mask = torch.randn(1, 64, 4), torch.ones(1, 64, dtype=torch.bool)
    layer(vectors, mask)
    before = layer.embedding.clone()
    quantized, indices = layer(vectors, mask)
    assert torch.equal(quantized, before[indices])


def test_a_dead_code_is_given_a_vector_and_keeps_it_through_the_next_update() -> None:
    torch.manual_seed(0)
    layer = VectorQuantizerEMA(16, 4, dead_code_threshold=0.2)
    vectors, mask = torch.randn(1, 256, 4), torch.ones(1, 256, dtype=torch.bool)
    layer(vectors, mask)
    layer.embedding[3] = 1e3
    layer.ema_w[3] = 1e3 * layer.ema_cluster_size[3]
    for _ in range(60):
        layer(vectors, mask)
    assert layer.embedding[3].norm() < 10
    assert layer.ema_cluster_size[3] > 0.2


def test_few_codes_are_replaced_in_one_step() -> None:
    layer = VectorQuantizerEMA(64, 4, dead_code_threshold=0.2)
    vectors, mask = torch.randn(1, 256, 4), torch.ones(1, 256, dtype=torch.bool)
    layer(vectors, mask)
    layer.ema_cluster_size[:32] = 1e-3
    layer.ema_w[:32] = 1e-3 * layer.embedding[:32]
    layer.replace_dead_codes(vectors[0])
    assert int((layer.ema_cluster_size[:32] > 1).sum()) == layer.replaced_per_step


def test_the_codebook_stays_as_it_is_in_evaluation(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = train_documents.build_model("ema", 32)
    model(*batch)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(*batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
