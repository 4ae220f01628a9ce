"""Deformable DETR in parts: backbone, neck, position, transformer, queries or proposals, heads, criterion."""
