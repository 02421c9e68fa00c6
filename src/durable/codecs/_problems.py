"""What goes wrong between a value and its tree."""

from __future__ import annotations


class Unencodable(Exception):
    """A part of a value would not come back as it is; each container adds its step to the path on the way out."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self._steps: list[str] = []

    def within(self, step: str) -> Unencodable:
        """This, seen from the container that reaches the part by `step`."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        """From the value to the part: `$.items[3].price`."""
        return "$" + "".join(reversed(self._steps))


class DecodeError(Exception):
    """No value is written as this tree."""
