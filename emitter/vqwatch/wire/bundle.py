"""Several messages sent as one: one call and one wake-up of the I/O thread, where many would cost the trainer more.

A bundle is ``[index]``, ``[index][data]`` or one frame with a head, the data and the index: the index is a msgpack list
with ``[header, [[offset, bytes], ...]]`` for each message, and the data holds all their buffers, apart from each other.
A message's own first frame is a map, so that the first byte tells one from the other.

That all of it can be one frame spares the trainer an allocation: the first one of a kilobyte in a call makes malloc
sort all that the training freed before it, which takes as long as everything else in the call.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgpack

from .encoding import Header
from .messages import MAX_HEADER_BYTES, MAX_TENSORS, Frame, WireError
from .stencil import Groups, Stencil

MAX_BUNDLED: Final = 64
MAX_INDEX_BYTES: Final = 256 * 1024

Bundled: TypeAlias = tuple[bytes | Header, Sequence[tuple[int, int]]]
"""A message's header, packed or not, and where in the data each of its buffers lies: offset and size in bytes."""

_FIRST_BYTES: Final = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})  # msgpack's lists
_HEAD: Final = struct.Struct("<B3xIQ")  # a byte that begins nothing in msgpack, the index's size, and where it lies
_IN_ONE: Final = 0xC1
HEAD_BYTES: Final = _HEAD.size


# They keep what they packed until they are told to forget it, so that nothing is allocated; their pages stay.
_indexer: Final = msgpack.Packer(autoreset=False)
_of_headers: Final = msgpack.Packer(autoreset=False)


def bundle(messages: Sequence[Bundled], memory: memoryview | None = None, spare: int = 0) -> list[Frame] | None:
    """Return the frames of a bundle, or None where the messages are too many or a header is too long, or no header.

    ``memory`` is :data:`HEAD_BYTES`, the data, and ``spare`` bytes: head and index are written there where they fit,
    and what is returned is then a part of it.
    """
    if len(messages) > MAX_BUNDLED:
        return None
    try:
        _indexer.pack_array_header(len(messages))
        for header, places in messages:
            if isinstance(header, bytes):
                _indexer.pack((header, places))
            elif not _pack_both(header, places):
                return None
        with _indexer.getbuffer() as index:
            size = len(index)
            if size > MAX_INDEX_BYTES:
                return None
            if memory is None:
                return [bytes(index)]
            end = len(memory) - spare
            if size > spare:
                return [bytes(index), memory[HEAD_BYTES:end]]
            memory[end : end + size] = index
        _HEAD.pack_into(memory, 0, _IN_ONE, size, end)
        return [memory[: end + size]]
    finally:
        _indexer.reset()


def fill_in(stencil: Stencil, numbers: Groups, memory: memoryview, spare: int) -> memoryview | None:
    """Return what :func:`bundle` gives for such memory, with an index of this stencil, or None where it does not fit.

    Raises struct.error and ValueError as :meth:`Stencil.fill` does.
    """
    if stencil.size > spare:
        return None
    end = len(memory) - spare
    stencil.fill(memory, end, numbers)
    _HEAD.pack_into(memory, 0, _IN_ONE, stencil.size, end)
    return memory[: end + stencil.size]


def _pack_both(header: Header, places: Sequence[tuple[int, int]]) -> bool:
    """Pack a header and a message of it; return False where that cannot be."""
    try:
        _of_headers.pack(header)
        with _of_headers.getbuffer() as packed:
            if len(packed) > MAX_HEADER_BYTES:
                return False
            _indexer.pack((packed, places))
    except (TypeError, ValueError, OverflowError):
        return False
    finally:
        _of_headers.reset()
    return True


def unbundle(frames: Sequence[Frame]) -> list[Sequence[Frame]]:
    """Return the frames of each message in what was received, which is itself a message or a bundle of some.

    Nothing is copied. Raises :class:`WireError` for a bundle whose index cannot be read, or points outside the data.
    """
    first = memoryview(frames[0]).cast("B") if frames else memoryview(b"")
    if first.nbytes == 0 or (first[0] not in _FIRST_BYTES and first[0] != _IN_ONE):
        return [frames]
    in_one = first[0] == _IN_ONE
    if len(frames) > 2 - in_one:
        raise WireError("frames", f"{len(frames)} frames in a bundle, {'1' if in_one else '1 or 2'} allowed")
    if in_one:
        packed, data = _apart(first)
    else:
        packed, data = first, memoryview(frames[1]).cast("B") if len(frames) == 2 else memoryview(b"")
    if packed.nbytes > MAX_INDEX_BYTES:
        raise WireError("header_size", f"an index of {packed.nbytes} bytes, at most {MAX_INDEX_BYTES}")
    try:
        index = msgpack.unpackb(packed, strict_map_key=True, raw=False)
    except Exception as error:  # msgpack raises a dozen unrelated types for malformed input
        raise WireError("header_format", f"not msgpack: {type(error).__name__}") from error
    if not isinstance(index, list):
        raise WireError("header_format", "the index of a bundle is a list")
    if len(index) > MAX_BUNDLED:
        raise WireError("limit", f"{len(index)} messages in a bundle, at most {MAX_BUNDLED}")
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


def _apart(frame: memoryview) -> tuple[memoryview, memoryview]:
    """Return the index and the data that one frame holds."""
    if frame.nbytes < HEAD_BYTES:
        raise WireError("buffer_size", f"{frame.nbytes} bytes, a bundle in one frame has a head of {HEAD_BYTES}")
    _, size, at = _HEAD.unpack_from(frame)
    if at < HEAD_BYTES or at + size > frame.nbytes:
        raise WireError("buffer_size", f"an index of {size} bytes at {at} of the {frame.nbytes} of a bundle")
    return frame[at : at + size], frame[HEAD_BYTES:at]
