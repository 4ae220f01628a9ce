"""Benchmarks: contenders are compared for equal results, then timed side by side in one run."""
