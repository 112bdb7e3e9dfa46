"""Models side by side: what `evaluate` measures of each, and the table of it."""
