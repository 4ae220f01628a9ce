"""Detection data in COCO format: reading, augmenting, batching, scoring, checking, and generated shapes."""

from own_packages import check_own

check_own("util")
