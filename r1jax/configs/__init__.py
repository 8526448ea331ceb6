"""Frozen dataclasses that say what to compute, and their presets. Nothing here knows of arrays."""
