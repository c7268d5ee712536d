"""Reconstruction quality of one run: samples of input and output in, readings out."""

from __future__ import annotations

from vqwatch.wire import Reconstruction
from vqwatch_daemon.arrays import as_floats, as_mask
from vqwatch_daemon.metrics import reconstruction
from vqwatch_daemon.readings import Readings, one
from vqwatch_daemon.sections.refused import Refused


def read(message: Reconstruction) -> tuple[Readings, int]:
    """Return the readings of one sample and how many non-finite values its valid frames held.

    ``[B, C, T, D]`` counts as ``B x C`` sequences. Raises :class:`Refused` when mask and sample do not fit.
    """
    original, reconstructed, mask = as_floats(message.original), as_floats(message.reconstructed), as_mask(message.mask)
    if original.ndim == 4:
        original, reconstructed = (array.reshape(-1, *array.shape[2:]) for array in (original, reconstructed))
        mask = mask.reshape(-1, mask.shape[-1]) if mask is not None and mask.ndim == 3 else mask
    try:
        found = reconstruction.reconstruction(original, reconstructed, mask)
    except ValueError as error:
        raise Refused("mask", str(error)) from error
    return {
        "reconstruction_mse": one(found.mse),
        "reconstruction_snr_db": one(found.snr_db),
        "reconstruction_cosine_similarity": one(found.cosine),
        "reconstruction_temporal_consistency": one(found.temporal),
        "reconstruction_temporal_correlation": one(found.temporal_correlation),
        "reconstruction_spectral_distance_db": one(found.spectral_db),
    }, found.nonfinite_values
