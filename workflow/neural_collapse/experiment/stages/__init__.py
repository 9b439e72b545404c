"""The pipeline's stages, each from files to files: what a rule runs, and anybody can.

Every function reads what the one before it wrote, does one thing, and leaves either complete
outputs or none. Expensive ones continue where an earlier try stopped.
"""
