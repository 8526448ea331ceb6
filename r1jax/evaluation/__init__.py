"""Scores of models, and the report of a run."""
