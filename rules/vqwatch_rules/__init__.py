"""Alert rules: the model, the engine, the shipped pack."""
