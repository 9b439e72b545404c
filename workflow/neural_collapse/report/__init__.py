"""The report: one self-contained HTML page that opens offline.

Pictures are inlined, a content security policy forbids every outside request and every script
but the page's own, and all text from tables, configs and cards is escaped.
"""
