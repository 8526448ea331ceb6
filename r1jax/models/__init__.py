"""Flax modules: the decoder and its parts."""
