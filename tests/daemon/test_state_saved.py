"""Trees of numbers and arrays in a file; journals that end in the middle of a record."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqwatch_daemon import journal, saved
from vqwatch_daemon.journal import Journal, Record


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    tree = {"a": [1, 2.5, None, "x", math.inf], "b": {"c": np.arange(6).reshape(2, 3)}, "d": np.float32(0.5)}
    saved.write(path, tree)
    back = saved.read(path)
    assert back["a"] == [1, 2.5, None, "x", math.inf]
    assert back["b"]["c"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back["d"] == 0.5
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "s.npz"
    saved.write(path, {"a": np.arange(10_000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(saved.Damaged):
        saved.read(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_damage_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, at: int, by: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "s.npz"
    saved.write(path, {"a": np.arange(500), "b": "text"})
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= by
    path.write_bytes(data)
    try:
        back = saved.read(path)
    except saved.Damaged:
        return
    assert back["a"].tolist() == list(range(500))
    assert back["b"] == "text"


def npz(tree: bytes, array: bytes) -> bytes:
    """Return a file whose sums are right and whose tree or array is not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("tree.npy", npy(np.frombuffer(tree, np.uint8))), ("a0.npy", array)):
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


TREE = b'{"version":1,"tree":{"x":{"\\u0000array":"a0"}}}'
ARRAY = npy(np.arange(40, dtype=np.float32))


@pytest.mark.parametrize(
    ("tree", "array"),
    [
        (TREE, ARRAY.replace(b"}", b" ")),  # numpy: tokenize.TokenError
        (TREE, ARRAY.replace(b"(40,), }               ", b"(4000000000000000,), } ")),  # MemoryError
        (TREE, ARRAY.replace(b"<f4", b"|O ")),
        (b"[" * 100_000, ARRAY),  # RecursionError
        (b'{"version":1,"tree":' + b'{"a":' * 100_000, ARRAY),
        (b'{"version":1,"tree":{"a":' + b"9" * 5000 + b"}}", ARRAY),
        (b'{"version":1,"tree":[]}', ARRAY),
        (b'{"version":2,"tree":{}}', ARRAY),
        (b"\xff", ARRAY),
    ],
)
def test_whatever_is_in_a_file_it_is_damaged_or_read(tmp_path: Path, tree: bytes, array: bytes) -> None:
    assert array != ARRAY or tree != TREE
    path = tmp_path / "s.npz"
    path.write_bytes(npz(TREE, ARRAY))
    assert saved.read(path)["x"].tolist() == list(range(40))
    path.write_bytes(npz(tree, array))
    with pytest.raises(saved.Damaged):
        saved.read(path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, tree=np.array([{"version": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(saved.Damaged):
        saved.read(path)


def test_a_snapshot_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        _write_to_full(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _write_to_full(directory: Path) -> None:
    (directory / "s.npz.part").symlink_to("/dev/full")
    saved.write(directory / "s.npz", {"a": np.zeros(10**6)})


def test_records_come_back_in_order(tmp_path: Path) -> None:
    book = Journal(tmp_path / "j.log")
    book.append("message", 1.5, [b"abc", memoryview(b""), np.arange(3, dtype=np.int64).data])
    book.append("tick", 2.0)
    book.append("absent", 3.0, journal.absence(7.5))
    assert list(journal.read(book.path)) == [
        Record("message", 1.5, (b"abc", b"", np.arange(3, dtype=np.int64).tobytes())),
        Record("tick", 2.0),
        Record("absent", 3.0, (), 7.5),
    ]
    assert book.size_bytes == book.path.stat().st_size


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_journal_cut_anywhere_gives_the_records_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    book = Journal(tmp_path_factory.mktemp("cut") / "j.log")
    ends = [0]
    for index in range(5):
        book.append("message", float(index), [bytes(index * 7)])
        ends.append(book.size_bytes)
    cut = data.draw(st.integers(0, book.size_bytes))
    with book.path.open("r+b") as file:
        file.truncate(cut)
    assert len(list(journal.read(book.path))) == sum(end <= cut for end in ends) - 1


def test_a_damaged_record_ends_the_reading(tmp_path: Path) -> None:
    book = Journal(tmp_path / "j.log")
    for index in range(3):
        book.append("message", float(index), [b"0123456789"])
    content = bytearray(book.path.read_bytes())
    content[len(content) // 2] ^= 1
    book.path.write_bytes(content)
    assert [record.now for record in journal.read(book.path)] == [0.0]


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_noise_is_no_journal(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "j.log"
    path.write_bytes(noise)
    list(journal.read(path))


def test_a_record_that_does_not_fit_on_the_disk_is_an_error() -> None:
    with pytest.raises(OSError, match="No space"):
        Journal(Path("/dev/full")).append("tick", 0.0)
