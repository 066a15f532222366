"""A simulated federation on the federation engine's simulator."""
