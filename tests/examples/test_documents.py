"""The example's data: real text, the same everywhere, with masks that tell padding from frames."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import documents
import pytest
import torch
import train_documents


def test_docstrings_of_modules_classes_and_functions_become_sentences() -> None:
    source = b'"""A module that is documented."""\nclass A:\n    """A class that is too. With two sentences."""\n'
    assert documents.sentences(source) == [
        "A module that is documented.", "A class that is too.", "With two sentences.",
    ]  # fmt: skip


def test_a_source_that_cannot_be_parsed_has_no_sentences() -> None:
    assert documents.sentences(b"def (") == []


def test_the_same_sentence_has_the_same_features_in_any_company() -> None:
    alone = documents.featurize(["Return the sum of all items."])[0]
    together = documents.featurize(["Return the sum of all items.", "Something else entirely."])[0]
    assert torch.allclose(*(torch.from_numpy(x / (x**2).sum() ** 0.5) for x in (alone, together)), atol=1e-6)


def test_the_cache_gives_what_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    computed = documents.load()
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    cached = documents.load()
    for first, second in zip(computed, cached, strict=True):
        assert first.starts == second.starts
        assert torch.equal(first.features, second.features)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half of one"])
def test_a_broken_cache_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(documents, "read_library", lambda: [["A sentence of a document."] * 9] * 20)
    documents.load()
    (cache,) = tmp_path.rglob("*.npz")
    cache.write_bytes(content)
    train, held_out = documents.load()
    assert (len(train.starts), len(held_out.starts)) == (19, 3)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(documents, "read_library", lambda: [["A sentence of a document."] * 9] * 20)
    train, _ = documents.load()
    assert len(train.features) == 18 * 9


def test_the_library_of_this_interpreter_has_hundreds_of_documents() -> None:
    train, held_out = documents.load()
    assert len(train.starts) > 150
    assert len(held_out.starts) > 15
    assert train.features.shape[1] == documents.DIM
    assert torch.isfinite(train.features).all()


def test_masked_frames_are_zero_and_the_others_are_not() -> None:
    train, _ = documents.load()
    features, mask = next(documents.batches(train, 16, 64, seed=0))
    assert features.shape == (16, 64, documents.DIM)
    assert 0.3 < mask.float().mean() < 1.0
    assert (features[~mask] == 0).all()
    assert (features[mask].abs().sum(1) > 0).all()


def test_the_seed_decides_the_batches() -> None:
    train, _ = documents.load()
    first, again, other = (list(islice(documents.batches(train, 8, 32, seed), 3)) for seed in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_an_epoch_shows_no_window_twice() -> None:
    train, _ = documents.load()
    windows = train.windows(64)
    count = len(windows) // 16
    seen = [
        row[m] for x, mask in islice(documents.batches(train, 16, 64, 0), count) for row, m in zip(x, mask, strict=True)
    ]
    assert len({(len(window), *window[0].tolist()) for window in seen}) > 0.95 * len(seen)


def test_validation_shows_every_held_out_frame_once() -> None:
    _, held_out = documents.load()
    frames = sum(len(window) for window in held_out.windows(64))
    assert sum(int(mask.sum()) for _, mask in train_documents.validation_batches(16)) == frames
