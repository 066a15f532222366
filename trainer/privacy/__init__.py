"""Differential privacy: what a plan promises, what it costs, the noise, and training under it."""
