"""How a training script gets its emitter: settings from arguments, environment and torch.distributed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from .emitter import Emitter
from .schedule import DEFAULT_EVERY, Schedule
from .settings import SettingsError, resolve

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("vqwatch")


def attach(
    model: torch.nn.Module | None = None,
    optimizer: Any = None,
    *,
    run: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    endpoint: str | None = None,
    budget: float = 0.01,
    every: Mapping[str, int] | None = None,
    server_key: str | bytes | None = None,
    key_file: str | Path | None = None,
    allow_plain_tcp: bool | None = None,
    staging_bytes: int = 128 << 20,
    backlog_bytes: int = 64 << 20,
    send_bytes: int = 32 << 20,
    reconstruction_bytes: int = 4 << 20,
) -> Emitter:
    """Return an emitter that watches this model and optimizer; both may be left out.

    ``optimizer`` may be a list of several, as a training with a discriminator has; their groups are numbered on.

    The quantizers in ``model`` are found and read; codes, learning rates and gradient norms are taken from model and
    optimizer where :meth:`Emitter.step` is not given them. ``run``, ``rank``, ``world_size`` and ``endpoint`` come from
    here, else from ``VQWATCH_RUN``, ``VQWATCH_RANK``, ``VQWATCH_WORLD_SIZE`` and ``VQWATCH_ENDPOINT``, else from
    torch.distributed and the default socket. ``VQWATCH_DISABLED=1`` or an empty endpoint makes every call a no-op.

    ``budget`` is the share of the step time that the emitter may take on the host: it stretches its cadences to keep
    it, and ``float("inf")`` switches that off. ``every`` overrides single cadences of
    :data:`vqwatch.schedule.DEFAULT_EVERY`, in steps, 0 for never. Leaving this machine by tcp needs ``server_key``
    (``VQWATCH_SERVER_KEY``), with the client's own ``key_file`` (``VQWATCH_KEY_FILE``) where the daemon asks for it.

    With torch.compile, attach and compile before the first step: what is compiled later, while nothing is wanted of the
    layers, tells neither their codes nor their energies (this is noticed, and logged).

    Never raises: settings that cannot be used are logged as errors, and the emitter then does nothing.
    """
    try:
        settings = resolve(
            os.environ, run=run, rank=rank, world_size=world_size, endpoint=endpoint, server_key=server_key,
            key_file=key_file, allow_plain_tcp=allow_plain_tcp, budget=budget, staging_bytes=staging_bytes,
            backlog_bytes=backlog_bytes, send_bytes=send_bytes, reconstruction_bytes=reconstruction_bytes,
        )  # fmt: skip
        plan = Schedule({**DEFAULT_EVERY, **(every or {})}, settings.budget)
        return Emitter(settings, plan, model, optimizer) if settings.endpoint else Emitter(None, plan)
    except (SettingsError, ValueError, zmq.ZMQError) as error:
        _log.error("not watching: %s", error)
    except Exception:
        _log.exception("not watching: attaching failed")
    return Emitter(None, Schedule({}, 1.0))
