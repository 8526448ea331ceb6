"""Stages chained into runs."""
