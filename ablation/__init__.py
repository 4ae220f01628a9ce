"""Sweeps over configurations: plan, run, compare."""
