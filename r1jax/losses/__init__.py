"""Pure functions from arrays to losses and metrics."""
