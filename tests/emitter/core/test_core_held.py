"""Steps kept for a moment are those that were given, or are left out."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vqwatch.held import Held, Keeper


class Hooks:
    """What a keeper needs of the collector."""

    def __init__(self) -> None:
        self.tapped: list[tuple[str, Tensor]] = []
        self.norms: dict[str, tuple[Tensor, int]] = {}
        self.wants_codes = True

    def want_codes(self, wanted: bool) -> None:
        self.wants_codes = wanted


GROUPS: list[dict[str, Any]] = [{"lr": 0.5}]


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


@pytest.fixture
def keeper(hooks: Hooks) -> Keeper:
    kept = Keeper(hooks, [SimpleNamespace(param_groups=GROUPS)], -1)  # type: ignore[arg-type]  # what it needs of one
    kept.most = 8
    return kept


def keep(keeper: Keeper, step: int, **given: Any) -> bool:
    wanted: dict[str, Any] = {"losses": {}, "codes": None, "mask": None, "grad_norm": None, **given}
    return keeper.keep(step, wanted["losses"], wanted["codes"], wanted["mask"], wanted["grad_norm"], 1.0)


def only(keeper: Keeper) -> Held:
    ((held,), _) = keeper.take()
    return held


def test_a_step_is_kept_as_it_was_given(keeper: Keeper) -> None:
    loss, codes, mask, norm = torch.tensor(2.0), torch.arange(6), torch.ones(6), torch.tensor(3.0)
    assert keep(keeper, 4, losses={"total": loss, "aux": 0.25}, codes=codes, mask=mask, grad_norm=norm)
    held = only(keeper)
    assert (held.step, held.names, held.rates) == (4, ("total", "aux"), [0.5])
    assert held.values == [loss, 0.25]
    assert held.arrays == [codes, mask]
    assert held.tensors[: held.numbers] == [loss, norm]
    assert held.changed() == (False, False)


def test_what_hooks_told_is_kept_once(keeper: Keeper, hooks: Hooks) -> None:
    hooks.tapped = [("0", torch.arange(3)), ("1", torch.arange(3))]
    hooks.norms = {"": (torch.tensor(1.0), 3)}
    assert keep(keeper, 0, losses={"total": torch.tensor(1.0)})
    held = only(keeper)
    assert [layer for layer, _ in held.tapped] == ["0", "1"]
    assert list(held.norms) == [""]
    assert (hooks.tapped, hooks.norms, hooks.wants_codes) == ([], {}, True)


def test_what_hooks_tell_later_is_not_told_of_the_steps_before(keeper: Keeper, hooks: Hooks) -> None:
    for step in range(2):
        assert keep(keeper, step, losses={"total": torch.tensor(1.0)})
        if step == 0:  # the next forward pass
            hooks.tapped.append(("0", torch.arange(3)))
            hooks.norms[""] = (torch.tensor(1.0), 3)
    (before, after), _ = keeper.take()
    assert (len(before.tapped), len(before.norms)) == (0, 0)
    assert (len(after.tapped), len(after.norms)) == (1, 1)


def test_arrays_that_were_copied_are_let_go_of(keeper: Keeper) -> None:
    keep(keeper, 0, losses={"total": torch.tensor(1.0)}, codes=torch.arange(3))
    held = only(keeper)
    held.let_go_of_arrays()
    assert (held.codes, held.arrays, len(held.tensors)) == (None, [], 1)


def test_the_first_of_the_steps_can_be_taken_and_those_left_are_watched(keeper: Keeper) -> None:
    codes, losses = [torch.arange(3) for _ in range(4)], [torch.tensor(float(step)) for step in range(4)]
    for step in range(4):
        keep(keeper, step, losses={"total": losses[step]}, codes=codes[step])
    held, places = keeper.take(2)
    assert [one.step for one in held] == [0, 1]
    assert places == [codes[0].data_ptr(), codes[1].data_ptr()]
    keep(keeper, 4, losses={"total": losses[1].detach()}, codes=codes[1].detach())  # of one that was taken
    assert (keeper.numbers_reused, keeper.arrays_reused) == ([], [])
    keep(keeper, 5, losses={"total": losses[3].detach()}, codes=codes[2].detach())
    assert [one.step for one in keeper.held] == [2, 3, 4, 5]
    assert (keeper.numbers_reused, keeper.arrays_reused) == ([1], [0])


def test_arrays_that_wait_to_be_copied_are_noticed_where_their_memory_is_used_again(keeper: Keeper) -> None:
    codes = [torch.arange(3), torch.arange(3)]
    for step in range(2):
        keep(keeper, step, codes=codes[step].detach())
    _, keeper.begun = keeper.take()
    for step, reused in ((2, []), (3, [1]), (4, [1, 0]), (5, [1, 0])):
        keep(keeper, step, codes=torch.arange(3) if step in (2, 5) else codes[4 - step].detach())
        assert (keeper.begun_reused, keeper.arrays_reused) == (reused, [])


def test_a_part_of_the_gradients_goes_with_the_norm_that_is_left_out(keeper: Keeper) -> None:
    keep(keeper, 0, losses={"total": torch.tensor(1.0)}, grad_norm=torch.tensor(5.0))
    held = only(keeper)
    held.gradients = torch.tensor([3.0]), ["encoder"]
    held.leave_out(numbers=True, arrays=False)
    assert (held.norm, held.gradients) == (None, None)


def test_a_loss_is_kept_without_the_graph_that_it_hangs_on(keeper: Keeper) -> None:
    loss = torch.ones(3, requires_grad=True).sum()
    assert keep(keeper, 0, losses={"total": loss})
    assert only(keeper).values[0].grad_fn is None


def test_a_number_that_is_written_to_is_noticed(keeper: Keeper) -> None:
    loss = torch.ones(3, requires_grad=True).sum()
    keep(keeper, 0, losses={"total": loss}, codes=torch.arange(3))
    with torch.no_grad():
        loss.mul_(2)
    assert only(keeper).changed() == (True, False)


@pytest.mark.parametrize("which", ["codes", "mask"])
def test_codes_or_a_mask_that_are_written_to_are_noticed(keeper: Keeper, which: str) -> None:
    given = {"codes": torch.arange(3), "mask": torch.ones(3)}
    keep(keeper, 0, losses={"total": torch.tensor(1.0)}, **given)
    given[which][0] = 7
    assert only(keeper).changed() == (False, True)


def test_codes_that_a_hook_told_and_that_are_written_to_are_noticed(keeper: Keeper, hooks: Hooks) -> None:
    hooks.tapped = [("0", torch.arange(3)), ("1", torch.arange(3))]
    last = hooks.tapped[-1][1]
    keep(keeper, 0, losses={"total": torch.tensor(1.0)})
    last.zero_()
    assert only(keeper).changed() == (False, True)


def test_memory_that_is_used_again_is_noticed_for_what_it_holds(keeper: Keeper) -> None:
    codes = torch.arange(3)
    for step in range(2):
        keep(keeper, step, losses={"total": torch.tensor(float(step))}, codes=codes.detach())
    assert (keeper.numbers_reused, keeper.arrays_reused) == ([], [0])


def test_a_loss_in_the_same_memory_as_the_one_before_is_noticed(keeper: Keeper) -> None:
    loss = torch.tensor(1.0)
    for step in range(2):
        keep(keeper, step, losses={"total": loss}, codes=torch.arange(3))
    assert (keeper.numbers_reused, keeper.arrays_reused) == ([0], [])


def test_memory_that_is_used_in_turns_is_noticed(keeper: Keeper) -> None:
    losses, codes = [torch.tensor(1.0), torch.tensor(2.0)], [torch.arange(3), torch.arange(3)]
    for step in range(4):
        keep(keeper, step, losses={"total": losses[step % 2]}, codes=codes[step % 2])
        before = list(range(step - 1))
        assert (keeper.numbers_reused, keeper.arrays_reused) == (before, before)


def test_memory_that_is_used_at_every_step_is_noticed_for_each(keeper: Keeper) -> None:
    loss, codes = torch.tensor(1.0), torch.arange(3)
    for step in range(4):
        keep(keeper, step, losses={"total": loss}, codes=codes)
    assert (keeper.numbers_reused, keeper.arrays_reused) == ([0, 1, 2], [0, 1, 2])


def test_new_memory_at_each_step_is_no_memory_used_again(keeper: Keeper) -> None:
    for step in range(8):
        keep(keeper, step, losses={"total": torch.tensor(float(step))}, codes=torch.arange(3))
    assert (keeper.numbers_reused, keeper.arrays_reused) == ([], [])
    assert not any(held.changed() != (False, False) for held in keeper.held)


def test_numbers_that_others_may_write_to_are_copied_at_once(keeper: Keeper) -> None:
    keeper.at_once = True
    loss, norm = torch.tensor(1.0), torch.tensor(2.0)
    keep(keeper, 0, losses={"total": loss, "aux": 0.5}, grad_norm=norm, codes=torch.arange(3))
    with torch.no_grad():
        loss.data.fill_(9.0)  # as a collective does: no new version
        norm.data.fill_(9.0)
    held = only(keeper)
    assert [float(value) for value in held.values] == [1.0, 0.5]
    assert held.norm is not None
    assert float(held.norm) == 2.0
    assert held.changed() == (False, False)


@pytest.mark.parametrize(
    "given",
    [
        {"losses": torch.tensor(1.0)},
        {"losses": {"total": 1}},
        {"losses": {"total": torch.tensor(1.0)}, "codes": [torch.arange(3)]},
        {"losses": {"total": torch.tensor(1.0)}, "mask": [True]},
        {"losses": {"total": torch.tensor(1.0)}, "grad_norm": 1.0},
    ],
)
def test_what_is_no_plain_tensor_is_left_to_the_general_way(keeper: Keeper, hooks: Hooks, given: Any) -> None:
    hooks.tapped = [("0", torch.arange(3))]
    assert not keep(keeper, 0, **given)
    assert keeper.held == []
    assert len(hooks.tapped) == 1


def test_a_step_that_goes_back_is_left_to_the_general_way(keeper: Keeper) -> None:
    assert keep(keeper, 5, losses={"total": torch.tensor(1.0)})
    assert not keep(keeper, 5, losses={"total": torch.tensor(1.0)})


def test_another_thread_is_left_to_the_general_way(keeper: Keeper) -> None:
    kept: list[bool] = []
    thread = threading.Thread(target=lambda: kept.append(keep(keeper, 0, losses={"total": torch.tensor(1.0)})))
    thread.start()
    thread.join()
    assert kept == [False]
