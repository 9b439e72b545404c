"""The datasets: sources, parsers and preparation.

Importing this package imports neither numpy nor torch, so that planning a workflow stays fast;
:mod:`.download`, :mod:`.parsers`, :mod:`.prepare` and :mod:`.prepared` do the work.
"""
