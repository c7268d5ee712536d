"""Ready-made callbacks for training frameworks."""
