"""Several messages sent as one: one call and one wake-up of the I/O thread, where many would cost the trainer more.

A bundle is ``[index]`` or ``[index][data]``: the index is a msgpack list with ``[header, [[offset, bytes], ...]]`` for
each message, and the data holds all their buffers, apart from each other. A message's own first frame is a map, so that
the first byte tells one from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgpack

from .encoding import packer
from .messages import MAX_TENSORS, Frame, WireError

MAX_BUNDLED: Final = 64
MAX_INDEX_BYTES: Final = 256 * 1024

Bundled: TypeAlias = tuple[bytes, Sequence[tuple[int, int]]]
"""A message's header, and where in the data each of its buffers lies: offset and size in bytes."""

_FIRST_BYTES: Final = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})  # msgpack's lists


def bundle(messages: Sequence[Bundled], data: Frame | None) -> list[Frame] | None:
    """Return the frames of a bundle, or None where the messages are too many or their headers too long for one."""
    if len(messages) > MAX_BUNDLED:
        return None
    index: bytes = packer.pack(messages)
    if len(index) > MAX_INDEX_BYTES:
        return None
    return [index] if data is None else [index, data]


def unbundle(frames: Sequence[Frame]) -> list[Sequence[Frame]]:
    """Return the frames of each message in what was received, which is itself a message or a bundle of some.

    Nothing is copied. Raises :class:`WireError` for a bundle whose index cannot be read, or points outside the data.
    """
    first = memoryview(frames[0]) if frames else memoryview(b"")
    if first.nbytes == 0 or first.cast("B")[0] not in _FIRST_BYTES:
        return [frames]
    if first.nbytes > MAX_INDEX_BYTES:
        raise WireError("header_size", f"an index of {first.nbytes} bytes, at most {MAX_INDEX_BYTES}")
    if len(frames) > 2:
        raise WireError("frames", f"{len(frames)} frames in a bundle, 1 or 2 allowed")
    try:
        index = msgpack.unpackb(frames[0], strict_map_key=True, raw=False)
    except Exception as error:  # msgpack raises a dozen unrelated types for malformed input
        raise WireError("header_format", f"not msgpack: {type(error).__name__}") from error
    if len(index) > MAX_BUNDLED:
        raise WireError("limit", f"{len(index)} messages in a bundle, at most {MAX_BUNDLED}")
    data = memoryview(frames[1]).cast("B") if len(frames) == 2 else memoryview(b"")
    left = data.nbytes
    found: list[Sequence[Frame]] = []
    for entry in index:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], bytes)):
            raise WireError("header_format", "an entry of a bundle is [header, [[offset, bytes], ...]]")
        message: list[Frame] = [entry[0]]
        places = entry[1] if isinstance(entry[1], list) else [None]
        if len(places) > MAX_TENSORS:
            raise WireError("frames", f"{len(places)} buffers in a message of a bundle, at most {MAX_TENSORS}")
        for place in places:
            if not (isinstance(place, list) and len(place) == 2 and all(type(number) is int for number in place)):
                raise WireError("header_format", "a place in a bundle is [offset, bytes]")
            at, size = place
            left -= size
            if at < 0 or size < 0 or at + size > data.nbytes or left < 0:  # no byte may be told of twice
                raise WireError("buffer_size", f"{size} bytes at {at} of the {data.nbytes} in a bundle")
            message.append(data[at : at + size])
        found.append(message)
    return found
