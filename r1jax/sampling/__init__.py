"""Completions from prompts, jitted."""
