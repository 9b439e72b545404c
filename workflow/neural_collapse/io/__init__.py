"""Files, locks, tensors, progress and errors, used by every other package."""
