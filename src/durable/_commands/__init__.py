"""The commands of `python -m durable`, a module each; `processes` and `loading` are what `worker` is made of."""
