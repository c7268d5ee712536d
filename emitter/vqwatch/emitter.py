"""The emitter: what a training loop talks to. It is a guest: it never waits, never raises into the loop, never grows.

Each :meth:`Emitter.step` takes what is due and sends what has arrived on the host since the last one.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from . import schedule as kinds
from .ahead import Ahead
from .arrays import Refused
from .backlog import Backlog
from .capture import Capture
from .collect import Collector
from .complaints import Complaints
from .entry import Entry
from .errands import Errands
from .evaluation import EvaluationPass
from .guest import Pause, guarded, watch_process
from .link import Link
from .outbox import Outbox
from .scalars import parameter_groups
from .schedule import Schedule
from .settings import Settings
from .wire import MAX_INTEGER, Frame, Goodbye, Hello, Origin, encode

if TYPE_CHECKING:
    import torch

    from .held import Held
    from .ordinary import Ordinary

_log = logging.getLogger("vqwatch")
_monotonic: Final = time.monotonic


class Emitter:
    """Watches one training process. Made by :func:`attach`; use it from one thread.

    As a context manager it closes at the end. ``stop_requested`` is true once the daemon asked for the training to end,
    and ``stop_reason`` then names the alert.
    """

    def __init__(
        self, settings: Settings | None, plan: Schedule, model: torch.nn.Module | None = None, optimizer: Any = None
    ) -> None:
        self.complaints = Complaints()
        self._plan = plan
        self._lock = threading.Lock()
        self._on = False
        self._paused = 0
        self._go_on: Callable[[], None] | None = None
        self._ordinary: Ordinary | None = None
        if settings is None:
            return
        self._settings = settings
        self._owner: int | None = None
        self._origin = Origin(settings.run, settings.rank, secrets.token_hex(8))
        self._quantizers = self._find(model) if model is not None else None
        self._optimizers = tuple(optimizer) if isinstance(optimizer, (list, tuple)) else (optimizer,)
        self._collector = Collector(
            self._origin,
            self._quantizers,
            self._optimizers,
            self.complaints,
            reconstruction_bytes=settings.reconstruction_bytes,
            model=model,
            ranks=settings.world_size,
        )
        self._capture = Capture(settings.staging_bytes)
        self._staged = False
        self._ahead = Ahead(plan, self._collector)
        self._link = Link(
            settings.endpoint,
            self._origin.session,
            time.monotonic(),
            self.complaints.dropped,
            keys=settings.keys,
            backlog=Backlog(settings.backlog_messages, settings.backlog_bytes),
            send_bytes=settings.send_bytes,
        )
        self._outbox = Outbox(self._origin, self._link, plan, self.complaints)
        self._errands = Errands(self._link, self._outbox, plan)
        if self._quantizers is not None:
            self._quantizers.install(self._collector)
        self._link.introduce(self._hello(), time.monotonic())
        self._on = True
        watch_process(self)

    def _find(self, model: torch.nn.Module) -> Any:
        from . import codebooks

        try:
            found = codebooks.find(model)
        except Exception as error:
            self.complaints.failed("quantizers", error)
            return None
        if found.unknown or not found.layers:
            _log.warning("%s", codebooks.advice(found.unknown))
        return found

    def _hello(self) -> Callable[[int, int], list[Frame]]:
        layers = tuple(layer.info for layer in self._quantizers.layers) if self._quantizers is not None else ()
        torch = sys.modules.get("torch")
        info = {"python": platform.python_version(), "torch": str(getattr(torch, "__version__", ""))}
        time_ns = time.time_ns()

        def make(seq: int, first: int) -> list[Frame]:
            return encode(
                Hello(
                    self._origin, seq, first, time_ns, self._settings.world_size, layers, version=_version(),
                    host=socket.gethostname()[:255], pid=os.getpid(), info=info,
                )
            )  # fmt: skip

        return make

    # --- what a training loop calls ---------------------------------------------------------------------------------

    def step(
        self,
        step: int,
        *,
        losses: Any = None,
        codes: Any = None,
        original: Any = None,
        reconstructed: Any = None,
        mask: Any = None,
        grad_norm: Any = None,
        lr: Any = None,
    ) -> None:
        """Tell what training step ``step`` did. Returns at once, never raises.

        Steps rise; an earlier one than the latest means that training went back to a checkpoint, and readings go back
        with it. The same one again is refused by the daemon.

        ``losses`` maps names to numbers or one-element tensors (a single one is called "total"). ``codes`` are the
        assignments of this step, integers, negative where there is none: ``[B, T, L]`` or ``[B, L]`` with the layers in
        the *last* axis, ``[L, B, T]`` where only the first axis fits the model's number of layers, a list with one
        tensor per layer, or a dict from layer to tensor (of these a layer that does not fit is missing, the others are
        sent); without them, what hooks saw in the forward passes since the last step. ``original`` and
        ``reconstructed`` are ``[B, T, D]`` or ``[B, D]``, ``mask`` is ``[B, T]``, true or 1 where a frame is valid.
        ``grad_norm`` is the norm before clipping, ``lr`` a number or a dict by group; without them they are taken from
        the model and the optimizer: gradients as they are, so call it between the optimizer's step and ``zero_grad()``.
        A GradScaler has unscaled them by then; in a step that it skips they are not finite.

        Arrays may be torch tensors, numpy arrays or anything with ``__dlpack__``; of a DTensor this rank's part is
        sent, but no addend (give its ``full_tensor()``). What does not fit is left out, logged once and counted; the
        rest is sent. CUDA tensors may be read up to twenty steps later, in loops with less than 0.2 s a step: do not
        write to them after the call. What was written to is noticed, left out and counted as "overwritten", and from
        then on everything is read at once.
        """
        if (
            self._ordinary is None
            or lr is not None
            or not self._keep(step, losses, codes, original, reconstructed, mask, grad_norm)
        ):
            self._step(step, losses, codes, original, reconstructed, mask, grad_norm, lr)

    def _keep(
        self, step: int, losses: Any, codes: Any, original: Any, reconstructed: Any, mask: Any, grad_norm: Any
    ) -> bool:
        """Keep the step if it can be an ordinary one, and do what is due for those kept; return whether it was kept."""
        if not self._on or self._paused or not self._lock.acquire(False):
            return False
        now = _monotonic()
        ordinary, errands = self._ordinary, self._errands
        try:
            if ordinary is None or not self._link.writable:
                return False
            keeper = ordinary.keeper
            before = keeper.last
            if not ordinary.keep(step, losses, codes, mask, grad_norm, now):
                return False
            errands.steps += 1
            if step >= errands.calm_step or now >= errands.calm_until or keeper.reused:
                self._attend(ordinary, before, now, original, reconstructed, mask)
            errands.own_seconds += _monotonic() - now
        except Exception as error:
            if ordinary is not None:
                ordinary.give_up()
            self._ordinary = None
            self.complaints.failed("step", error)
        finally:
            self._lock.release()
        return True

    def _attend(
        self, ordinary: Ordinary, before: int, now: float, original: Any, reconstructed: Any, mask: Any
    ) -> None:
        """Do what there is to do in a call that kept a step, and work out when there will be something again.

        ``before`` was the step before.
        """
        plan, errands, step = self._plan, self._errands, ordinary.keeper.last
        self._staged = True
        busy = step >= plan.next_special and self._take_beside(
            ordinary, plan.beside(step, before), original, reconstructed, mask
        )
        busy = errands.run(ordinary, now, busy)
        if step + 1 >= self._ahead.look_at:
            self._expect(step, before, busy)
        errands.rest(ordinary, now, min(plan.next_special, self._ahead.look_at - 1))

    def _take_beside(
        self, ordinary: Ordinary, due: frozenset[str], original: Any, reconstructed: Any, mask: Any
    ) -> bool:
        """Take what is due beside the numbers and codes of the step kept last; return whether that was any."""
        if kinds.GRADIENTS in due:
            ordinary.want_gradients()
        large = sorted(due & kinds.LARGE)
        for kind in large:
            entry = Entry(ordinary.keeper.last)
            entry.alone = True
            self._collector.take_beside(entry, frozenset({kind}), original, reconstructed, mask)
            self._errands.in_kinds += sum(entry.costs.values())
            self._capture.stage(entry, self.complaints, later=True)
            entry.sources = []
            ordinary.beside(entry)
        return len(large) > 0

    @guarded
    def _step(
        self, step: int, losses: Any, codes: Any, original: Any, reconstructed: Any, mask: Any, grad_norm: Any, lr: Any
    ) -> None:
        """Take any step."""
        started = time.monotonic()
        if self._owner is None:
            self._owner = threading.get_ident()
        elif self._owner != threading.get_ident():
            self.complaints.say("step:thread", "step() was called from a second thread: left out")
            return
        if self._paused or self._capture.blocked():
            self._collector.forget()
            return
        step = int(step)
        if not 0 <= step <= MAX_INTEGER:
            raise Refused("step", f"step {step} is negative, or more than a message can hold")
        before, errands = self._plan.last, self._errands
        errands.calm_step = 0
        if self._ordinary is not None:
            self._ordinary.copy(late=True)
        if not self._staged or errands.unheard(started):
            errands.listen(started)
            errands.send(started)
        last, due = self._plan.last, self._plan.due(step)
        if self._ordinary is not None:
            if self._plan.is_due(kinds.CLUSTERS, step, before):  # too late for those that were kept
                due |= {kinds.CLUSTERS}
            self._ordinary.keeper.last = step  # less than before where training went back to a checkpoint
        if not self._link.writable:
            due = self._without_peer(due)
        entry = Entry(step)
        self._take(
            entry, due, losses=losses, codes=codes, original=original, reconstructed=reconstructed, mask=mask,
            grad_norm=grad_norm, lr=lr,
        )  # fmt: skip
        if entry.slot is not None and self._ordinary is None:
            self._ordinary = self._begin_ordinary()
        errands.steps += 1
        self._expect(step, last)
        self._staged = entry.slot is not None
        crowded = errands.crowded
        send = crowded or not self._staged
        if crowded:
            errands.listen(started)
        if send:
            errands.send(started)
        errands.own_seconds += time.monotonic() - started
        if send:
            errands.account(started, self._ordinary)

    def _take(self, entry: Entry, due: frozenset[str], **given: Any) -> None:
        """Take what is due of one step the general way."""
        self._collector.collect(entry, due, **given)
        self._errands.in_kinds += sum(entry.costs.values())
        self._capture.stage(entry, self.complaints, len(self._outbox.pending) > 0)
        self._outbox.add(entry)

    def _take_held(self, held: Held) -> None:
        """Take a step that was kept and is not like one before; learn how, for the next that is like it."""
        collector, ordinary = self._collector, self._ordinary
        of_now, wanted = (collector.tapped, collector.norms), collector.wants_codes
        collector.tapped, collector.norms = list(held.tapped), dict(held.norms)
        try:
            due = self._plan.due(held.step) & kinds.ORDINARY
            entry = Entry(held.step)
            entry.time_ns = held.time_ns
            if held.gradients is not None:
                self._collector.add_gradients(entry, *held.gradients)
            self._take(
                entry, due, losses=dict(zip(held.names, held.values, strict=True)), codes=held.codes, original=None,
                reconstructed=None, mask=held.mask, grad_norm=held.norm, lr=held.rates, kept=True,
            )  # fmt: skip
            if entry.slot is not None and ordinary is not None:
                ordinary.learn(entry, held, kinds.CODES in due and len(held.arrays) > (held.mask is not None))
        finally:
            collector.tapped, collector.norms = of_now
            collector.want_codes(wanted)

    def _begin_ordinary(self) -> Ordinary | None:
        from .ordinary import Ordinary

        staging = self._capture.staging
        groups = parameter_groups(self._optimizers)
        if staging is None or not all("lr" in group and "name" not in group for group in groups):
            return None
        optimizers = [optimizer for optimizer in self._optimizers if parameter_groups([optimizer])]
        dropped = self.complaints.dropped
        return Ordinary(self._plan, staging, self._collector, self._outbox, optimizers, dropped, self._take_held)

    def _expect(self, step: int, before: int, busy: bool = False) -> None:
        """Take in what the hooks took, and tell them what the step after this one will want."""
        collector, errands = self._collector, self._errands
        if collector.tap_seconds:
            if collector.wants_energies:
                self._plan.spent({kinds.ENERGIES: collector.tap_seconds})
                errands.in_kinds += collector.tap_seconds
            errands.own_seconds += collector.tap_seconds
            collector.tap_seconds = 0.0
        self._ahead.look(step, before, busy)

    def _copy_held(self) -> None:
        """Begin the copies of ordinary steps that are kept, so that steps stay in order."""
        if self._ordinary is not None:
            self._ordinary.copy()

    def _without_peer(self, due: frozenset[str]) -> frozenset[str]:
        reason = "busy_peer" if self._link.daemon else "no_peer"
        for kind in due - {kinds.SCALARS, kinds.ENERGIES}:
            self.complaints.dropped[f"{kind}:{reason}"] += 1
        return due & {kinds.SCALARS, kinds.ENERGIES}

    def evaluation(self, step: int, name: str = "validation", wait: float = 5.0) -> EvaluationPass:
        """Return a validation pass: ``with watch.evaluation(step) as ev: ev.update(original=…, …)`` for each batch.

        A pass is known by its step and ``name``. Its batches must arrive: where the daemon is slow, the whole pass
        waits for room at most ``wait`` seconds.
        """
        return EvaluationPass(self, step, name, wait)

    @guarded
    def _evaluate(self, call: Callable[..., None], *arguments: Any) -> None:
        self._copy_held()
        self._link.turn(time.monotonic())
        self._outbox.send(time.monotonic())
        call(*arguments)

    @property
    def stop_requested(self) -> bool:
        """Return whether the daemon asked for the training to end; learned at the last :meth:`step`."""
        return self._on and self._link.stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Return the alert for which the daemon asked the training to end."""
        return self._link.stop_reason if self._on else None

    @property
    def dropped(self) -> dict[str, int]:
        """Return what was left out so far, by "kind:reason"."""
        return dict(self.complaints.dropped)

    @property
    def every(self) -> dict[str, int]:
        """Return the present cadence of each kind, in steps."""
        return dict(self._plan.every)

    @property
    def overhead(self) -> float | None:
        """Return the emitter's own host time over the step time, a moving average; None before it is known."""
        return self._plan.overhead

    @property
    def staged_bytes(self) -> int:
        """Return the device memory taken for staging."""
        return self._capture.staged_bytes if self._on else 0

    @property
    def pinned_bytes(self) -> int:
        """Return the pinned host memory taken for staging."""
        return self._capture.pinned_bytes if self._on else 0

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until all that must arrive was acknowledged, at most ``timeout`` seconds; return whether it was.

        Where no daemon has answered yet it gives up a quarter of a second after :func:`attach`.
        """
        done: list[bool] = []
        self._flush(timeout, done)
        return bool(done and done[0])

    @guarded
    def _flush(self, timeout: float, done: list[bool]) -> None:
        deadline = time.monotonic() + timeout
        self._copy_held()
        self._outbox.wait(time.monotonic, deadline)
        done.append(self._link.wait(time.monotonic, deadline))

    @guarded
    def close(self, timeout: float = 2.0, reason: str = "close") -> None:
        """Say goodbye, wait at most ``timeout`` seconds for its acknowledgement, and let go of model and socket.

        Returns at once where no daemon was ever there. A second call does nothing.
        """
        self._on = False
        now = time.monotonic()
        try:
            if self._quantizers is not None:
                self._quantizers.remove()
            self._copy_held()
            self._outbox.wait(time.monotonic, now + timeout)
            sent = dict(self._link.sent)
            time_ns = time.time_ns()
            self._link.must_arrive(
                "goodbye",
                lambda seq, first: encode(
                    Goodbye(self._origin, seq, first, time_ns, self._outbox.last_step, reason[:512], sent)
                ),
                now,
            )
            self._link.wait(time.monotonic, now + timeout)
        finally:
            self._ordinary = None  # it holds tensors
            self._link.close()

    def pause(self) -> Pause:
        """Do nothing until :meth:`Pause.resume`, or inside ``with watch.pause():``, such as while capturing a graph.

        Forward passes in a pause are no part of the step around it, and what goes by is no time between steps: around a
        validation it keeps the budget true.
        """
        self._paused += 1
        if self._paused == 1:
            self._settle()
        return Pause(self)

    @guarded
    def _settle(self) -> None:
        errands, started = self._errands, time.monotonic()
        self._copy_held()
        now = time.monotonic()
        errands.own_seconds += now - started
        errands.account(now, self._ordinary)
        self._go_on = self._collector.set_aside()

    def _resume(self) -> None:
        """End a pause, which may be one inside another."""
        self._paused -= 1
        if self._paused:
            return
        go_on, self._go_on = self._go_on, None
        if self._on:
            if go_on is not None:
                go_on()
            self._errands.skip(time.monotonic())

    def __enter__(self) -> Emitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(reason="close" if kind is None else kind.__name__)


@functools.cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vqwatch")
    except PackageNotFoundError:
        return ""
