"""What is known of an experiment while it runs and after: status, curves, leftover files."""
