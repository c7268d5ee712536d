"""The separate process: receives, computes, exposes and alerts."""
