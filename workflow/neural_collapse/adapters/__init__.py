"""Neural collapse in other libraries' training loops: torchmetrics, Lightning, Hugging Face.

Each module needs its library: `pip install 'neural-collapse[adapters]'`.
"""
