"""Reading checkpoints safely, model outputs, codebook sizes, and which checkpoint of a directory is next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.daemon import evaluating

from vqwatch_daemon.evaluate import checkpoints, forward, quantizers
from vqwatch_daemon.evaluate.checkpoints import CheckpointError
from vqwatch_daemon.evaluate.watchlist import Stamp, Watchlist, listed


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmful-was-here"),))


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": evaluating.build().state_dict(), "more": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="--unsafe-pickle") as refusal:
        checkpoints.read(tmp_path / "x.pt", "cpu")
    assert not refusal.value.damaged
    assert not Path("harmful-was-here").exists()


def test_by_name_it_is_loaded_nevertheless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": evaluating.build().state_dict(), "more": Harmful()}, tmp_path / "x.pt")
    state, _ = checkpoints.read(tmp_path / "x.pt", "cpu", unsafe_pickle=True)
    assert "scale" in state


@pytest.mark.parametrize("version", ["2.9.1+cu128", "2.4.0", "1.13.1"])
def test_a_torch_whose_weights_only_is_broken_is_not_trusted_with_a_checkpoint(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".pt", ".safetensors"):
        save(evaluating.build().state_dict(), tmp_path / f"x{suffix}")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(CheckpointError, match=r"CVE-2026-24747.*--unsafe-pickle") as refusal:
        checkpoints.read(tmp_path / "x.pt", "cpu")
    assert not refusal.value.damaged
    for path, by_name in ((tmp_path / "x.safetensors", False), (tmp_path / "x.pt", True)):
        assert "scale" in checkpoints.read(path, "cpu", unsafe_pickle=by_name)[0]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_cut_short_is_damaged(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"x{suffix}"
    save(evaluating.build().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError) as refusal:
        checkpoints.read(path, "cpu")
    assert refusal.value.damaged


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_comes_back_as_it_was_saved(tmp_path: Path, suffix: str) -> None:
    model = evaluating.build()
    model.scale.data.fill_(0.125)
    path = tmp_path / f"x-step=40{suffix}"
    save(model.state_dict(), path)
    state, step = checkpoints.read(path, "cpu")
    again = evaluating.build()
    checkpoints.put(state, again)
    assert (again.scale.item(), step) == (0.125, 40)


@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_a_wrapped_and_nested_state_fits_the_bare_model(tmp_path: Path, wrap: str) -> None:
    state = {f"{wrap}{name}": value for name, value in evaluating.build().state_dict().items()}
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "global_step": 7}, tmp_path / "x.pt")
    found, step = checkpoints.read(tmp_path / "x.pt", "cpu")
    checkpoints.put(found, evaluating.build())
    assert step == 7


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"scale": torch.zeros(()), "other": torch.zeros(3)}, tmp_path / "x.pt")
    state, _ = checkpoints.read(tmp_path / "x.pt", "cpu")
    with pytest.raises(CheckpointError, match=r"lacks .*embedding.* has other"):
        checkpoints.put(state, evaluating.build())


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the kinds"):
        checkpoints.read(tmp_path / "x.pkl", "cpu")


def save(state: dict[str, Any], path: Path) -> None:
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)


# --- forward ------------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    reconstruction: Any
    codes: Any
    losses: Any


@dataclass
class Held:
    losses: Any
    codes: Any
    reconstructed: Any


@pytest.mark.parametrize(
    "shape",
    [
        lambda output: output,
        lambda output: Named(*output),
        lambda output: Held(output[2], output[1], output[0]),
        lambda output: {"recon": output[0], "indices": output[1], "losses": output[2]},
    ],
    ids=["tuple", "named tuple", "dataclass", "mapping"],
)
def test_every_form_of_output_is_read_alike(shape: Any) -> None:
    model = evaluating.build()
    batch = next(evaluating.batches())
    expected = forward.run(model, batch, "cpu")
    found = forward.run(model, batch, "cpu", lambda _model, _batch: shape(model(*_batch)))
    np.testing.assert_array_equal(found.reconstructed, expected.reconstructed)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert found.losses == expected.losses


def test_a_batch_by_name_goes_in_by_name() -> None:
    features, mask = next(evaluating.batches())
    found = forward.run(evaluating.build(), {"features": features, "mask": mask}, "cpu")
    np.testing.assert_array_equal(found.original, features.numpy())
    np.testing.assert_array_equal(found.mask, mask.numpy())


def test_bfloat16_is_widened() -> None:
    model = evaluating.build().to(torch.bfloat16)
    features, mask = next(evaluating.batches())
    assert forward.run(model, (features.to(torch.bfloat16), mask), "cpu").reconstructed.dtype == np.float32


def test_an_output_without_reconstruction_is_refused_with_what_it_has() -> None:
    with pytest.raises(forward.ForwardError, match=r"\['codes'\]"):
        forward.run(evaluating.build(), next(evaluating.batches()), "cpu", lambda _model, _batch: {"codes": 1})


def test_codebook_sizes_are_those_of_the_models_quantizers() -> None:
    assert quantizers.sizes(evaluating.build(), 2, None) == (16, 16)


def test_codebooks_that_cannot_be_told_are_asked_for() -> None:
    with pytest.raises(quantizers.CodebooksUnknown, match="--codebook-size"):
        quantizers.sizes(torch.nn.Linear(2, 2), 3, None)
    assert quantizers.sizes(torch.nn.Linear(2, 2), 3, 64) == (64, 64, 64)


# --- watching -----------------------------------------------------------------------------------------------------


def stamp(name: str, size: int = 1, modified: int = 0) -> Stamp:
    return Stamp(Path(name), 1, size, modified)


def test_a_file_is_ready_once_it_has_been_still() -> None:
    watchlist = Watchlist(2.0)
    assert watchlist.look([stamp("a.pt")], 0.0) == []
    assert watchlist.look([stamp("a.pt")], 1.9) == []
    assert watchlist.look([stamp("a.pt")], 2.0) == [stamp("a.pt")]


def test_a_file_that_grows_waits_and_others_do_not_wait_for_it() -> None:
    watchlist = Watchlist(2.0)
    for second in range(5):
        ready = watchlist.look([stamp("a.pt", size=second + 1), stamp("b.pt")], float(second))
    assert ready == [stamp("b.pt")]


def test_what_is_settled_comes_again_only_when_it_changes() -> None:
    watchlist = Watchlist(0.0)
    (first,) = watchlist.look([stamp("a.pt")], 0.0)
    watchlist.settle(first)
    assert watchlist.look([stamp("a.pt")], 1.0) == []
    assert watchlist.look([stamp("a.pt", modified=9)], 2.0) == [stamp("a.pt", modified=9)]


def test_the_one_written_first_is_first_and_names_are_counted_as_people_count() -> None:
    found = [stamp("s_10.pt"), stamp("s_9.pt"), stamp("early.pt", modified=-1)]
    names = [ready.path.name for ready in Watchlist(0.0).look(found, 0.0)]
    assert names == ["early.pt", "s_9.pt", "s_10.pt"]


def test_only_whole_kinds_of_checkpoints_are_listed(tmp_path: Path) -> None:
    for name in ("a.pt", ".b.pt", "c.tmp", "d.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "e.pt").mkdir()
    assert sorted(found.path.name for found in listed(tmp_path)) == ["a.pt", "d.safetensors"]
