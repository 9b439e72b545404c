"""Loops as they are usually written, to compare this project with. None is used by the project."""
