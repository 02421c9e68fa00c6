"""The rehearsal's machinery: what a test holds, and what stands between an execution and its store.

Time that jumps is in `clock`, `watches` and `timeline`; what a test puts in the way of a run in `crashes` and `scripts`.
"""
