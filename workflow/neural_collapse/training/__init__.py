"""Training: the loop, its resume states, the sweep's selection, and where it computes."""
