"""State, jitted updates, loops, metrics."""
