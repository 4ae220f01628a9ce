"""Deformable DETR in parts: backbone, neck, position, transformer, queries or proposals, heads, criterion."""

from own_packages import check_own

check_own("ops", "util")
