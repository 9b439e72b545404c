"""Training: the loop, resume states, selection of the learning rate, devices."""
