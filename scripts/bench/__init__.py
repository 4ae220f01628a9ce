"""Benchmarks: contenders are checked against one another, then timed side by side in one run."""
