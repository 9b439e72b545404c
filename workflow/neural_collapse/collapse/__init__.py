"""Measuring neural collapse: features -> moments -> statistics, and DeepFool robustness.

The package `neural_collapse` exports what is meant for users; modules here are imported by name.
"""
