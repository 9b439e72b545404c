"""Inspection of an experiment, during and after a run: status, curves, unused files."""
