"""What makes the emitter a good guest: it lets nothing out, forgets itself in forked children, and leaves in time."""

from __future__ import annotations

import atexit
import functools
import os
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .arrays import Refused

if TYPE_CHECKING:
    from .emitter import Emitter


def guarded(call: Callable[..., None]) -> Callable[..., None]:
    """Let nothing out of a call: it does nothing when off, or while another call is under way."""
    name = call.__name__.lstrip("_")

    @functools.wraps(call)
    def call_guarded(self: Emitter, *arguments: Any, **named: Any) -> None:
        if not self._on:
            return
        if not self._lock.acquire(blocking=False):
            self.complaints.say(f"{name}:concurrent", "%s() was called while another call was under way", name)
            return
        try:
            call(self, *arguments, **named)
        except Refused as error:
            self.complaints.refused(name, error)
        except Exception as error:
            self.complaints.failed(name, error)
        finally:
            self._lock.release()

    return call_guarded


class Pause:
    """Holds an emitter still until :meth:`resume` or the end of the ``with`` block."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter: Emitter | None = emitter

    def resume(self) -> None:
        """Let the emitter go on; a second call does nothing."""
        if self._emitter is not None:
            self._emitter._resume()
            self._emitter = None

    def __enter__(self) -> Pause:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()


_switched_on: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _switch_off_in_child() -> None:
    """Let a forked child be nobody's trainer: the socket and the session are its parent's."""
    for emitter in _switched_on:
        emitter._on = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_switch_off_in_child)


def watch_process(emitter: Emitter) -> None:
    """Switch the emitter off in forked children, and close it at the interpreter's exit.

    The exit waits a little, and only for a daemon heard of just now.
    """
    _switched_on.add(emitter)
    reference = weakref.ref(emitter)

    def leave() -> None:
        still_there = reference()
        if still_there is not None and still_there._on:
            heard = still_there._link.heard_within(3.0, time.monotonic())
            still_there.close(0.5 if heard else 0.0, "exit")

    atexit.register(leave)
