"""Measuring neural collapse: features -> moments -> statistics, and DeepFool robustness.

The package `neural_collapse` exports the public functions; modules here are imported by name.
"""
