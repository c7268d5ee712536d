"""vqwatch: the part of the sidecar that a training script imports."""
