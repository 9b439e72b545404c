"""The datasets: where they come from, how their files are read, and what is made of them.

Importing this package imports neither numpy nor torch, so that planning a workflow stays fast;
:mod:`.download`, :mod:`.parsers`, :mod:`.prepare` and :mod:`.prepared` do the work.
"""
