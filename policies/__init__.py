"""DECIDES. Pure functions over frozen values: no await, clock, randomness, environment or log."""
