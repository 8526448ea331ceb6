"""Scores of models, and the report of a run."""

from r1jax.evaluation.metrics import best_of_n, bootstrap_interval, cons_at_k, pass_at_1, pass_at_k

__all__ = ["best_of_n", "bootstrap_interval", "cons_at_k", "pass_at_1", "pass_at_k"]
