"""The tests. This file keeps the name ours: a library among the test families installs a ``tests`` package too."""
