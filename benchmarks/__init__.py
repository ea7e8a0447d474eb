"""Measures what ProcGuard promises, beside the floor, in one run: ``python -m benchmarks.NAME``."""
