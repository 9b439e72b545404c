"""This project against reference loops, as ratios from one run: ``python -m benchmarks``."""
