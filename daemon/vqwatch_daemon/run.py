"""One training job as the daemon knows it: takes messages, merges ranks, yields readings.

Knows no clock and no socket: time is an argument. What a message changes comes back as updates, each the readings of
one step; the current value of every reading is in :attr:`Run.readings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from vqwatch.wire import Codebooks, Codes, Evaluation, Goodbye, Hello, Layer, Reconstruction, Step
from vqwatch.wire import Message as AnyMessage
from vqwatch_daemon.limits import Names
from vqwatch_daemon.readings import Readings, Series, one
from vqwatch_daemon.sections import reconstruction
from vqwatch_daemon.sections.evaluation import Evaluations
from vqwatch_daemon.sections.ranks import Ranks
from vqwatch_daemon.sections.refused import Refused
from vqwatch_daemon.sections.snapshots import Snapshots
from vqwatch_daemon.sections.training import Training
from vqwatch_daemon.sections.usage import CodebookUse

PATIENCE_SECONDS: Final = 1.0
"""How long a step waits for a rank that does not come."""

RETURN_SECONDS: Final = 15.0
"""How long ranks may take to come back after the daemon was away; steps wait for them so long."""

CATCH_UP_SECONDS: Final = 5.0
"""How long steps go on waiting after the last of them came back: it sends again what nobody took meanwhile."""


class Update(NamedTuple):
    """Readings that changed together, and the training step they are of."""

    step: int
    readings: Readings


class Run:
    """The state of one run. ``window`` is the length of the usage window in steps."""

    def __init__(self, name: str, window: int, now: float) -> None:
        self.name = name
        self.started_at = now
        self.readings: Readings = {}
        self.ranks = Ranks()
        self.names = Names()
        self.layers: tuple[Layer, ...] = ()
        self._window = window
        self._delay = 0.0
        self._returned_at = self._away_until = float("-inf")
        self.training = Training()
        self._build(())

    def _build(self, layers: tuple[Layer, ...]) -> None:
        """Begin anew with these layers; counters of the training go on."""
        self.layers = layers
        self.use = CodebookUse(layers, self._window)
        self.snapshots = Snapshots(layers, self.use.window)
        self.evaluations = Evaluations(layers)
        self.training.lay_out(layer.name for layer in layers)

    def apply(self, message: AnyMessage, now: float) -> list[Update]:
        """Take one message that is in order; return what it changes.

        Raises :class:`Refused` for what cannot be used; nothing has changed then.
        """
        message = self.names.admit(message)
        handler = _HANDLERS[type(message)]
        updates = [Update(*item) for item in handler(self, message, now)]
        for update in updates:
            self.readings.update(update.readings)
        return updates

    def heard(self, rank: int, now: float, lost: int) -> None:
        """Note that a rank spoke, whatever it said, and how many messages before it are lost."""
        self.ranks.heard(rank, now, lost)

    def _hello(self, message: Hello, now: float) -> list[tuple[int, Readings]]:
        visitor = message.info.get("role") == "evaluator"  # no rank: it brings evaluations, and learns no layers
        if message.layers and message.layers != self.layers and not (visitor and self.layers):
            if _sizes(message.layers) != _sizes(self.layers):
                self._build(message.layers)
                self.readings = {
                    name: series for name, series in self.readings.items() if not name.startswith(_OF_CODEBOOKS)
                }
            self.layers = message.layers
            self.snapshots.describe(message.layers)
        if visitor:
            self.ranks.heard(message.origin.rank, now)
        else:
            self.ranks.hello(message, now)
        self.snapshots.resume()
        info: Series = {(layer.name, layer.kind, layer.family): 1.0 for layer in self.layers}
        return [(max(self.ranks.furthest, 0), {"codebook_info": info, **self.training.nonfinite()})]

    def _step(self, message: Step, now: float) -> list[tuple[int, Readings]]:
        self._rewind_for(message)
        if self.ranks.returns(message.origin.rank):
            self._returned_at = now  # what it did meanwhile comes next
        if not self.ranks.step(message, now):
            raise Refused("step_repeated", f"rank {message.origin.rank} told step {message.step} before")
        if self.training.is_late(message.step):
            self.ranks.late(message.origin.rank)
        self._delay = now - message.time_ns / 1e9
        return self.training.add(message, self.ranks.awaited, now)

    def _rewind_for(self, message: Step) -> None:
        """Go back where a step does: training went on from a checkpoint, in a new session or in the same one."""
        step = self.ranks.goes_back(message.origin.rank, message.step)
        if step is not None:
            self.training.rewind(step)
            self.use.rewind(step)
            self.snapshots.rewind()

    def _codes(self, message: Codes, now: float) -> list[tuple[int, Readings]]:
        complete = self.use.add(message, self.ranks.awaited, now)
        updates = [self._settled(step, readings) for step, readings in complete]
        return [(step, readings) for step, readings in updates if readings]

    def _settled(self, step: int, readings: Readings) -> tuple[int, Readings]:
        readings.update(self.snapshots.settle(step))
        return step, readings

    def _codebooks(self, message: Codebooks, _now: float) -> list[tuple[int, Readings]]:
        readings = self.snapshots.add(message, self.use.tokens_per_step)
        if self.snapshots.nonfinite:
            readings.update(self.training.count_nonfinite("codebook", self.snapshots.nonfinite))
        return [(message.step, readings)]

    def _reconstruction(self, message: Reconstruction, _now: float) -> list[tuple[int, Readings]]:
        readings, bad = reconstruction.read(message)
        if bad:
            readings.update(self.training.count_nonfinite("reconstruction", bad))
            for name in _MEASURED_ON_FRAMES:  # must not go on looking like the last good value
                readings[name] = {(): float("nan")}
        return [(message.step, readings)]

    def _evaluation(self, message: Evaluation, _now: float) -> list[tuple[int, Readings]]:
        readings = self.evaluations.add(message, self.use.window.counts)
        return [] if readings is None else [(message.step, readings)]

    def _goodbye(self, message: Goodbye, now: float) -> list[tuple[int, Readings]]:
        self.ranks.goodbye(message, now)
        return self._complete()

    def _complete(self) -> list[tuple[int, Readings]]:
        """Read the steps for which nobody is awaited any more."""
        awaited = self.ranks.awaited
        return [*self.training.settle(awaited), *(self._settled(*item) for item in self.use.settle(awaited))]

    def tick(self, now: float) -> list[Update]:
        """Return what time alone changes: silence, lag, standstill, and steps that waited long enough."""
        presence = self.ranks.readings(now)
        overdue = self._complete()
        if self.ranks.returning and now - self._away_until < RETURN_SECONDS:
            self._returned_at = now
        if now - self._returned_at >= CATCH_UP_SECONDS and not self.ranks.joining(now):
            overdue += self.training.overdue(now, PATIENCE_SECONDS)
            overdue += [self._settled(*item) for item in self.use.overdue(now, PATIENCE_SECONDS)]
        presence["message_delay_seconds"] = one(self._delay)
        if self.names.dropped:
            presence["series_dropped_total"] = {(label,): float(n) for label, n in self.names.dropped.items()}
        state = self.ranks.state_name(now)
        presence["run_info"] = {(state, str(self.ranks.world_size), str(len(self.layers))): 1.0}
        updates = [Update(*item) for item in overdue] + [Update(max(self.ranks.furthest, 0), presence)]
        for update in updates:
            self.readings.update(update.readings)
        return updates

    def usage(self) -> dict[str, NDArray[Any]]:
        """Return how often each code was used over the window, by layer."""
        return self.use.usage()

    # --- outliving the daemon -----------------------------------------------------------------------------------------

    def absent(self, now: float, seconds: float) -> None:
        """Note that no daemon was there for ``seconds`` until ``now``: what nobody heard is not silence."""
        self.ranks.absent(now, seconds, RETURN_SECONDS)
        self._away_until = self._returned_at = now

    def state(self) -> dict[str, Any]:
        """Return everything that a restarted daemon needs to go on exactly here, numbers, texts and arrays."""
        return {
            "started_at": self.started_at,
            "delay": self._delay,
            "returned_at": self._returned_at,
            "away_until": self._away_until,
            "layers": [asdict(layer) for layer in self.layers],
            "readings": {
                name: [[*labels, value] for labels, value in series.items()] for name, series in self.readings.items()
            },
            "ranks": self.ranks.state(),
            "names": self.names.state(),
            "training": self.training.state(),
            "use": self.use.state(),
            "snapshots": self.snapshots.state(),
            "evaluations": self.evaluations.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned; a run that was given anything before must not.

        Raises KeyError, TypeError, ValueError or IndexError on what :meth:`state` never wrote.
        """
        self.started_at, self._delay = state["started_at"], state["delay"]
        self._returned_at, self._away_until = state["returned_at"], state["away_until"]
        self._build(tuple(Layer(**layer) for layer in state["layers"]))
        self.readings = {
            name: {tuple(labels): value for *labels, value in series} for name, series in state["readings"].items()
        }
        self.ranks.restore(state["ranks"])
        self.names.restore(state["names"])
        self.training.restore(state["training"])
        self.use.restore(state["use"])
        self.snapshots.restore(state["snapshots"])
        self.evaluations.restore(state["evaluations"])


def _sizes(layers: tuple[Layer, ...]) -> list[tuple[str, int]]:
    return [(layer.name, layer.size) for layer in layers]


_OF_CODEBOOKS: Final = ("codebook_", "ema_", "identifier_", "residual_")
_MEASURED_ON_FRAMES: Final = ("reconstruction_mse", "reconstruction_snr_db", "reconstruction_cosine_similarity")

_HANDLERS: Final[Mapping[type, Callable[[Run, Any, float], list[tuple[int, Readings]]]]] = {
    Hello: Run._hello,
    Step: Run._step,
    Codes: Run._codes,
    Codebooks: Run._codebooks,
    Reconstruction: Run._reconstruction,
    Evaluation: Run._evaluation,
    Goodbye: Run._goodbye,
}
