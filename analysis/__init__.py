"""Looking at trained detectors: where they look, what they depend on, where they err."""

from own_packages import check_own

check_own("datasets", "engine", "models", "ops", "util")
