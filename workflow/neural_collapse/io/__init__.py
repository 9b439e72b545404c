"""Files, locks, tensors, progress and errors: what every other package builds on."""
