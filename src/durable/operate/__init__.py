"""Seeing and steering runs: what the command line and a web page share. They are two skins of this room, and it has none.

`filters` reads what people type, `standing` says in words where a run stands, `timeline` makes bars of a journal, `redact` says
what may be shown of values, and `actions` changes things and writes a line for each.
"""
