"""The pipeline's stages, which read and write files; rules run them by the command line.

Every function reads the outputs of earlier stages and writes either complete outputs or none.
Expensive ones resume an interrupted try.
"""
