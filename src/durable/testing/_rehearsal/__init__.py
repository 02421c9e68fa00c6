"""The rehearsal's machinery: what a test holds, and what stands between an execution and its store.

`rehearsal` is the store of the test, and `stage` what its runs share. `runs` stands between an execution and that store, and
hears from `drivers` where the execution is; `replaying` is what `always_replay` adds. Time that jumps is in `clock`, `watches`
and `timeline`; what a test puts in a run's way in `crashes` and `scripts`.
"""
