from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.emitter.core.hand import Loop, Model, Peer, array, settle, until

import vqwatch
from vqwatch.gradients import Sketcher

Attach = Callable[..., vqwatch.Emitter]
EVERYTHING = dict.fromkeys(("codes", "clusters", "codebooks", "reconstruction", "gradients", "energies"), 1)


def test_a_step_arrives_with_what_it_was_told_and_what_the_optimizer_says(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer)
    told = loop.step()
    watch.step(7, **told, grad_norm=torch.tensor(2.5))
    settle(watch, peer)
    (step,) = peer.of("step")
    assert step.step == 7
    assert step.losses == {name: value.item() for name, value in told["losses"].items()}
    assert (step.gradient_norm, step.learning_rates) == (2.5, {"0": 1e-3})
    (codes,) = peer.of("codes")
    assert (codes.layers, codes.indices.dtype) == (("0", "1"), "i16")
    assert np.array_equal(array(codes.indices), told["codes"].movedim(-1, 0).numpy())
    assert np.array_equal(array(codes.mask), told["mask"].numpy())
    (sample,) = peer.of("reconstruction")
    assert np.array_equal(array(sample.original), told["original"].numpy())
    assert np.array_equal(array(sample.reconstructed), told["reconstructed"].detach().numpy())
    assert np.array_equal(array(sample.mask), told["mask"].numpy())


def test_several_optimizers_tell_the_rates_of_all_their_groups(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    critic = torch.nn.Linear(2, 1)
    groups = [{"params": [critic.weight], "name": "decay"}, {"params": [critic.bias]}]
    second = torch.optim.SGD(groups, lr=0.5)
    third = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "name": "decay"}], lr=0.25)
    watch = attached(loop.model, [loop.optimizer, second, third, None, object()])
    watch.step(0, **loop.step())
    third.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.125})
    watch.step(1, **loop.step())
    settle(watch, peer)
    first = {"0": 1e-3, "decay": 0.5, "2": 0.5, "3": 0.25}
    assert [step.learning_rates for step in peer.of("step")] == [first, first | {"4": 0.125}]
    assert watch.dropped == {}


def test_the_first_message_says_who_speaks_and_which_layers_there_are(attached: Attach, peer: Peer) -> None:
    attached(Model(), None, run="mine", rank=3, world_size=8)
    (hello,) = peer.of("hello")
    assert (hello.origin.run, hello.origin.rank, hello.world_size) == ("mine", 3, 8)
    assert [(layer.name, layer.kind, layer.size, layer.dim) for layer in hello.layers] == [
        ("0", "ema", 16, 8),
        ("1", "ema", 16, 8),
    ]


def test_codes_come_from_the_hooks_where_none_are_given(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer)
    wanted = []
    for step in range(5):
        told = loop.step()
        wanted.append(told.pop("codes"))
        watch.step(step, **told)
    settle(watch, peer)
    assert len(peer.of("codes")) == 5
    for message, codes in zip(peer.of("codes"), wanted, strict=True):
        assert np.array_equal(array(message.indices), codes.movedim(-1, 0).numpy())


def test_two_forward_passes_before_one_step_are_both_counted(attached: Attach, peer: Peer) -> None:
    model = Model()
    watch = attached(model)
    features = torch.randn(2, 2, 5, 8)
    codes = [model(part)[1] for part in features]
    watch.step(0)
    settle(watch, peer)
    assert [(message.part, message.parts) for message in peer.of("codes")] == [(0, 2), (1, 2)]
    for message, expected in zip(peer.of("codes"), codes, strict=True):
        assert np.array_equal(array(message.indices), expected.movedim(-1, 0).numpy())


def test_a_pass_in_eval_mode_is_not_training(attached: Attach, peer: Peer) -> None:
    model = Model()
    watch = attached(model)
    model.eval()
    model(torch.randn(2, 5, 8))
    watch.step(0, losses={"total": 1.0})
    settle(watch, peer)
    assert peer.of("codes") == []


def test_a_codebook_snapshot_is_the_codebook_of_its_step(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer, every=EVERYTHING)
    books, sizes = [], []
    for step in range(4):
        watch.step(step, **loop.step())
        books.append([layer.embedding.clone() for layer in loop.model.layers])
        sizes.append([layer.ema_cluster_size.clone() for layer in loop.model.layers])
    settle(watch, peer)
    assert [message.step for message in peer.of("codebooks")] == [0, 1, 2, 3]
    for message in peer.of("codebooks"):
        for layer in range(2):
            book = array(message.tensors[str(layer), "codebook"])
            assert np.array_equal(book[0], books[message.step][layer].numpy())
            size = array(message.tensors[str(layer), "cluster_size"])
            assert np.array_equal(size[0], sizes[message.step][layer].numpy())


def test_hooks_are_there_for_the_steps_that_want_them_only(attached: Attach, peer: Peer) -> None:
    """Codes by argument, energies every sixth step, hooks up to three steps before; then codes by hook."""
    loop = Loop()
    watch = attached(loop.model, every={"codes": 1, "energies": 6, "codebooks": 0})
    hooked = []
    for step in range(16):
        hooked.append(sum(len(layer._forward_hooks) for layer in loop.model.layers))
        told = loop.step()
        watch.step(step, losses=told["losses"], codes=told["codes"] if step < 13 else None)
    settle(watch, peer)
    assert hooked == [2, 0, 0, 0, 2, 2, 2, 0, 0, 0, 2, 2, 2, 0, 2, 2]
    assert [message.step for message in peer.of("step") if message.residual_energy] == [0, 6, 12]
    assert [message.step for message in peer.of("codes")] == [*range(13), 14, 15]


def test_energies_are_the_mean_squared_norms_of_what_is_left(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer, every=EVERYTHING)
    entered: list[torch.Tensor] = []
    for layer in loop.model.layers:
        layer.register_forward_pre_hook(lambda _module, args: entered.append(args[0].detach().clone()))
    told = loop.step()
    watch.step(0, **told)
    settle(watch, peer)
    (step,) = peer.of("step")
    assert step.input_energy == pytest.approx(entered[0].square().sum(-1).mean().item(), rel=1e-5)
    assert step.residual_energy["0"] == pytest.approx(entered[1].square().sum(-1).mean().item(), rel=1e-5)
    assert set(step.residual_energy) == {"0", "1"}


def test_energies_and_latents_of_an_accumulation_are_all_of_its_first_pass(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, every=EVERYTHING)
    entered: list[torch.Tensor] = []
    for layer in loop.model.layers:
        layer.register_forward_pre_hook(lambda _module, args: entered.append(args[0].detach().clone()))
    for scale in (1.0, 10.0, 0.1):
        loop.model(scale * torch.randn(3, 5, 8))
    watch.step(0, **loop.step())
    settle(watch, peer)
    (step,) = peer.of("step")
    energies = [values.square().sum(-1).mean().item() for values in entered[:2]]
    assert [step.input_energy, step.residual_energy["0"]] == pytest.approx(energies, rel=1e-5)
    (books,) = peer.of("codebooks")
    latents = array(books.tensors["0", "latents"])
    assert np.array_equal(latents, entered[0].reshape(-1, latents.shape[-1]).numpy())


def test_gradient_norms_are_those_of_the_modules_and_of_all(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer, every=EVERYTHING)
    watch.step(0, **loop.step())
    settle(watch, peer)
    (step,) = peer.of("step")
    expected = {
        name: math.sqrt(sum(p.grad.square().sum().item() for p in getattr(loop.model, name).parameters()))
        for name in ("encoder", "decoder")
    }
    assert step.gradient_norms == pytest.approx(expected, rel=1e-5)
    assert step.gradient_norm == pytest.approx(math.hypot(*expected.values()), rel=1e-5)


def test_every_rank_sketches_its_codebooks_and_only_the_first_sends_them(attached: Attach, peer: Peer) -> None:
    model = Model()
    for rank in range(2):
        attached(model, rank=rank, world_size=2, every=EVERYTHING).step(0, losses={"total": 1.0})
    for _ in range(50):
        peer.take(2)
    fields = {message.origin.rank: {field for _, field in message.tensors} for message in peer.of("codebooks")}
    assert fields == {0: {"codebook", "cluster_size", "sketch"}, 1: {"sketch"}}
    sketches = [array(message.tensors["1", "sketch"]) for message in peer.of("codebooks")]
    assert np.array_equal(*sketches)


def test_a_sketch_tells_how_far_two_codebooks_are_apart() -> None:
    torch.manual_seed(0)
    book, sketcher, ratios = torch.randn(64, 32), Sketcher(), []
    for _ in range(300):
        moved = torch.randn(64, 32)
        distance = (sketcher.sketch(book + moved) - sketcher.sketch(book)).square().sum()
        ratios.append((distance / moved.square().sum()).item())
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)
    assert sketcher.sketch(torch.ones(5)).shape == (64,)


def test_numpy_arrays_need_no_model(attached: Attach, peer: Peer) -> None:
    watch = attached()
    codes = np.random.default_rng(0).integers(0, 99, (4, 6, 3))
    features = np.ones((4, 6, 2), np.float32)
    watch.step(0, losses={"total": np.float32(1.5)}, codes=codes, original=features, reconstructed=features, lr=0.1)
    settle(watch, peer)
    assert (peer.of("step")[0].losses, peer.of("step")[0].learning_rates) == ({"total": 1.5}, {"0": 0.1})
    assert np.array_equal(array(peer.of("codes")[0].indices), np.moveaxis(codes, -1, 0))
    assert len(peer.of("reconstruction")) == 1


FEATURES = torch.randn(2, 5, 8)
GOOD = {"losses": {"total": 1.0}, "codes": torch.zeros(2, 5, 2, dtype=torch.long), "original": FEATURES,
        "reconstructed": FEATURES, "mask": torch.ones(2, 5, dtype=torch.bool)}  # fmt: skip


def test_a_mask_is_compared_where_its_codes_are_sent(attached: Attach, peer: Peer) -> None:
    watch = attached(Model(), every={"codes": 4, "reconstruction": 0})
    codes, mask = torch.zeros(2, 3, 2, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    for step in range(5):
        watch.step(step, codes=codes, mask=mask, original=FEATURES, reconstructed=FEATURES)
    settle(watch, peer)
    assert [message.mask.shape for message in peer.of("codes")] == [(2, 3)] * 2
    assert watch.dropped == {}, "between them there is nothing that it could fit"


@pytest.mark.parametrize(
    ("changed", "counted", "arrives"),
    [
        ({"codes": torch.zeros(2, 5, 2)}, "codes:dtype", {"step": 1, "reconstruction": 1}),
        ({"codes": torch.zeros(4, 5, 7, dtype=torch.long)}, "codes:shape", {"step": 1, "reconstruction": 1}),
        ({"codes": torch.zeros(2, 5, 2, dtype=torch.long, device="meta")}, "codes:device", {"step": 1}),
        ({"codes": "nonsense"}, "codes:dtype", {"step": 1}),
        ({"codes": [torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.long)]}, "codes:dtype", {"step": 1, "codes": 1}),
        ({"codes": {"0": torch.zeros(2, 5, dtype=torch.long), "1": None}}, "codes:absent", {"step": 1, "codes": 1}),
        ({"mask": torch.ones(3, 5)}, "mask:shape", {"step": 1, "codes": 1, "reconstruction": 1}),
        ({"mask": torch.eye(5).to_sparse()}, "mask:layout", {"step": 1, "codes": 1, "reconstruction": 1}),
        ({"losses": {"total": 1.0, "bad": torch.ones(3)}}, "losses:shape", {"step": 1, "codes": 1}),
        ({"losses": {"total": 1.0, "bad": "text"}}, "losses:dtype", {"step": 1, "codes": 1}),
        ({"grad_norm": object()}, "grad_norm:dtype", {"step": 1, "codes": 1}),
        ({"reconstructed": torch.randn(2, 4, 8)}, "reconstruction:shape", {"step": 1, "codes": 1}),
        ({"original": FEATURES.to_sparse()}, "reconstruction:layout", {"step": 1, "codes": 1}),
        ({"original": FEATURES.long()}, "reconstruction:dtype", {"step": 1, "codes": 1}),
        (
            {"original": torch.randn(8), "reconstructed": torch.randn(8)},
            "reconstruction:shape",
            {"step": 1, "codes": 1},
        ),
    ],
)
def test_what_does_not_fit_is_counted_and_the_rest_is_sent(
    attached: Attach, peer: Peer, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], counted: str,
    arrives: dict[str, int],
) -> None:  # fmt: skip
    watch = attached(Model())
    with caplog.at_level(logging.WARNING, "vqwatch"):
        for step in range(3):
            watch.step(step, **{**GOOD, **changed})
    settle(watch, peer)
    assert watch.dropped[counted] >= 1
    assert arrives.items() <= dict.fromkeys(peer.kinds(), 1).items()
    assert {message.step for message in peer.of("step")} == {0, 1, 2}
    assert len([record for record in caplog.records if counted in record.getMessage()]) == 1
    assert peer.of("step")[-1].losses["total"] == 1.0


@pytest.mark.parametrize(
    "loss",
    [
        1.5, np.float64(1.5), np.array([1.5]), torch.tensor(1.5), torch.tensor([1.5]),
        torch.tensor(1.5, dtype=torch.bfloat16), torch.tensor(1.5, dtype=torch.float64),
        torch.tensor(1.5, requires_grad=True),
    ],
)  # fmt: skip
def test_a_loss_may_be_a_number_or_any_array_of_one(attached: Attach, peer: Peer, loss: Any) -> None:
    watch = attached()
    watch.step(0, losses={"total": loss})
    watch.step(1, losses=loss)
    settle(watch, peer)
    assert [message.losses for message in peer.of("step")] == [{"total": 1.5}] * 2


def test_a_large_array_arrives_as_it_was_although_the_trainer_goes_on_writing_to_it(
    peers: Callable[..., Peer], endpoint: str
) -> None:
    peer = peers(endpoint, receive_at_most=1)
    watch = vqwatch.attach(endpoint=endpoint, every=EVERYTHING, budget=float("inf"))
    until(lambda: watch.flush(0.0), lambda: peer.take(1))
    features = torch.empty(4, 128, 512)
    for step in range(6):
        features.fill_(step)
        watch.step(step, original=features, reconstructed=features)
    features.fill_(-1)
    settle(watch, peer)
    assert len(peer.of("reconstruction")) == 6
    for message in peer.of("reconstruction"):
        assert (array(message.original) == message.step).all()
        assert (array(message.reconstructed) == message.step).all()
    watch.close(0.0)


def test_what_is_not_finite_travels_as_it_is(attached: Attach, peer: Peer) -> None:
    watch = attached()
    bad = torch.tensor([[[float("nan"), float("inf")]]])
    watch.step(0, losses={"total": torch.tensor(float("nan")), "vq": math.inf}, original=bad, reconstructed=bad)
    settle(watch, peer)
    assert math.isnan(peer.of("step")[0].losses["total"])
    assert peer.of("step")[0].losses["vq"] == math.inf
    assert np.isnan(array(peer.of("reconstruction")[0].original)[0, 0, 0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 8), (4, 1, 8), (1, 7, 8), (3, 8)])
def test_the_smallest_batches_are_batches(attached: Attach, peer: Peer, shape: tuple[int, ...]) -> None:
    watch = attached()
    x = torch.randn(shape)
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    watch.step(0, codes=torch.zeros(*shape[:-1], 2, dtype=torch.int32), original=x, reconstructed=x, mask=mask)
    settle(watch, peer)
    assert (peer.kinds()["codes"], peer.kinds()["reconstruction"], watch.dropped) == (1, 1, {})


def test_masks_with_an_axis_of_one_fit(attached: Attach, peer: Peer) -> None:
    watch = attached(Model())
    watch.step(0, **{**GOOD, "mask": torch.ones(2, 5, 1)})
    settle(watch, peer)
    assert peer.of("codes")[0].mask.shape == (2, 5)
    assert peer.of("reconstruction")[0].mask.shape == (2, 5)
    assert watch.dropped == {}


def test_a_large_reconstruction_is_sampled_in_whole_sequences_that_take_turns(attached: Attach, peer: Peer) -> None:
    watch = attached(every=EVERYTHING, reconstruction_bytes=2 * 2 * 50 * 8 * 4)
    x = torch.arange(6.0)[:, None, None].expand(6, 50, 8)
    for step in range(4):
        watch.step(step, original=x, reconstructed=x)
    settle(watch, peer)
    starts = [array(message.original)[:, 0, 0].tolist() for message in peer.of("reconstruction")]
    assert starts == [[2.0, 3.0], [4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]


def test_a_step_from_a_second_thread_is_left_out_and_counted(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": 1.0})
    other = threading.Thread(target=watch.step, args=(1,), kwargs={"losses": {"total": 2.0}})
    other.start()
    other.join()
    watch.step(2, losses={"total": 3.0})
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [0, 2]
    assert watch.dropped == {"step:thread": 1}


def test_a_call_inside_another_is_left_out_and_counted(attached: Attach, peer: Peer) -> None:
    watch = attached()

    class Meddler:
        def __float__(self) -> float:
            watch.step(99, losses={"total": 0.0})
            return 1.0

        def __array__(self, *_arguments: Any, **_named: Any) -> Any:
            watch.step(99, losses={"total": 0.0})
            return np.array(1.0)

    watch.step(0, losses={"total": Meddler()})
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [0]
    assert watch.dropped == {"step:concurrent": 1}


@pytest.mark.parametrize("step", [-1, "x", None, 1 << 70])
def test_a_step_number_that_means_nothing_raises_nothing(attached: Attach, peer: Peer, step: Any) -> None:
    watch = attached()
    watch.step(step, losses={"total": 1.0})
    watch.step(3, losses={"total": 1.0})
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [3]
    assert sum(watch.dropped.values()) == 1


@pytest.mark.parametrize(
    "options", [{"endpoint": ""}, {"endpoint": "tcp://10.1.2.3:99"}, {"rank": -4}, {"every": {"x": 1}}]
)
def test_without_usable_settings_every_call_does_nothing(options: dict[str, Any], endpoint: str) -> None:
    watch = vqwatch.attach(Model(), **{"endpoint": endpoint, **options})
    watch.step(0, **GOOD)
    with watch.evaluation(0) as ev:
        ev.update(original=FEATURES, reconstructed=FEATURES)
    assert (watch.stop_requested, watch.dropped, watch.flush()) == (False, {}, False)
    watch.close()


def test_settings_that_cannot_be_used_are_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "vqwatch"):
        vqwatch.attach(endpoint="tcp://10.1.2.3:99")
    (record,) = caplog.records
    assert "tcp://10.1.2.3:99" in record.getMessage()
    assert "server_key" in record.getMessage()


def test_training_is_bit_identical_with_and_without(attached: Attach, peer: Peer) -> None:
    weights = []
    for watched in (False, True):
        loop = Loop(seed=3)
        watch = attached(loop.model, loop.optimizer, every=EVERYTHING) if watched else None
        for step in range(30):
            told = loop.step()
            if watch is not None:
                watch.step(step, **told)
                peer.take()
        weights.append({name: value.clone() for name, value in loop.model.state_dict().items()})
        weights[-1]["random"] = torch.get_rng_state()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert peer.kinds()["codebooks"] > 10
