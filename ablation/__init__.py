"""Sweeps over configurations: plan, run, compare."""

from own_packages import check_own

# main.py imports this package first, so all that it needs are looked at here.
check_own("analysis", "datasets", "engine", "models", "ops", "util")
