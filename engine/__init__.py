"""The engine: training, evaluation and prediction, between the parts and the commands."""

from own_packages import check_own

check_own("datasets", "models", "ops", "util")
