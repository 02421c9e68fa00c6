"""A checkout that survives kill -9: the one of `python -m durable.demo`. Read it there.

python examples/checkout.py          kills it in the middle, and starts it again
python examples/checkout.py once     runs it to its end
"""

from __future__ import annotations

from durable.demo import once, play

if __name__ == "__main__":
    play([__file__], once)
