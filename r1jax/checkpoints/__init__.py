"""Whole runs on disk."""
