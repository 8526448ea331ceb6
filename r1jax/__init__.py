"""DeepSeek-R1, whole, in JAX."""

__version__ = "0.1.0"
