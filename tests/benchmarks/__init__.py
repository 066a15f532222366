"""Benchmarks: figures beside real peers, measured in one run."""
