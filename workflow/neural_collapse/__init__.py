"""Reference reproduction of Neural Collapse (Papyan, Han and Donoho, PNAS 2020)."""

__version__ = "0.1.0"
