"""Benchmarks: each prints ratios from one run and writes its rows to `results/`."""
