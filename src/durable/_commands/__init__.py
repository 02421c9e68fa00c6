"""The command line, a skin of `durable.operate`: a module for each few commands, which is loaded when one of them is named.

`app` is the group of all, `shared` and `output` what they have in common. `worker`, which is there without click, is made of
`processes` and `loading`.
"""
