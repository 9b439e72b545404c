"""From tables to results: schemas, claims, Table 1, the paper's numbers, reference runs."""

TABLES = ("measurements", "runs", "sweep", "activations")
"""The tables that are collected of all runs: everything that a figure reads."""
