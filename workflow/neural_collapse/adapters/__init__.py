"""Adapters for the training loops of other libraries: torchmetrics, Lightning, Hugging Face.

Each module needs its library: `pip install '.[adapters]'` in a clone.
"""
