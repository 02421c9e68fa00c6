"""The tag, and the two ways in which a value and its tree can fail each other."""

from __future__ import annotations

import re
from typing import Any, Final

TAG: Final = "$type"  # an object with this key is a tagged value; a dict that has it is written as pairs
TAG_IN_TEXT: Final = b'"$type"'
CODEC_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}", re.ASCII)


class Refusal(Exception):
    """A part of a value cannot come back; the path to it is gathered on the way out."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self._steps: list[str] = []

    def within(self, step: str) -> Refusal:
        """The same, seen from the container that reaches the part by this step."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        """The way from the value to the part: `$.items[3].price`."""
        return "$" + "".join(reversed(self._steps))


class Misread(Exception):
    """A tree is not what a value was written as."""


def missing_codec(name: Any) -> str:
    """What is wrong with a record that a codec wrote which is not there."""
    shown = f" {name!r}" if isinstance(name, str) and CODEC_NAME.fullmatch(name) else ""
    return f"the codec{shown} wrote it, and the store has none of that name: pass it to the store with codec="
