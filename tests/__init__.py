"""Makes ``python -m tests.benchmarks...`` find these tests: some quantizer libraries install a package of that name."""
