"""Measuring neural collapse: features -> moments -> statistics, and DeepFool robustness.

The top-level package `neural_collapse` exports the public functions.
"""
