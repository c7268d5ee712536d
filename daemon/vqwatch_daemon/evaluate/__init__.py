"""``vqwatch evaluate``: the daemon's metrics over a whole validation set, from a checkpoint.

    vqwatch evaluate --model train_documents:build_model --data train_documents:validation_batches --checkpoint x.pt

Torch is imported when the command runs, by ``checkpoints``, ``forward`` and ``quantizers`` only.
"""
