"""An onboarding of three weeks: a customer is welcomed, reminded, heard, and asked again every week.

python examples/onboarding.py        plays it on a clock that jumps, in a moment

With a real store it would take three weeks, and cost a row.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import durable
from durable.testing import Rehearsal

DAY: Final = 24 * 3600.0
WEEKS: Final = 2  # in which the customer is asked how it goes


@dataclass
class Mail:
    """Sends mail, and keeps a copy."""

    sent: list[str] = field(default_factory=list[str])

    def send(self, what: str) -> str:
        """One letter."""
        self.sent.append(what)
        return what


@dataclass
class Progress:
    """With what an onboarding goes on: each week begins with an empty journal."""

    customer: str
    week: int = 0
    answers: list[str] = field(default_factory=list[str])


@durable.workflow(name="onboarding")
def onboarding(step: durable.Step, mail: Mail, at: Progress) -> list[str]:
    """Wait for days, and for a person. Meanwhile there is no process, no thread, and no connection."""
    if at.week == 0:
        step("welcome", mail.send, f"welcome, {at.customer}")
        step.sleep("three days", 3 * DAY)
        try:
            step.wait_for("profile filled in", timeout=4 * DAY)
        except durable.SignalTimedOut:
            step("remind", mail.send, f"{at.customer}, your profile is empty")
    else:
        step("ask", mail.send, f"week {at.week}: how is it going?")
        try:
            at.answers.append(step.wait_for("answer", timeout=7 * DAY))
        except durable.SignalTimedOut:
            at.answers.append("(silence)")
    if at.week < WEEKS:
        step.continue_with(Progress(at.customer, at.week + 1, at.answers))
    return at.answers


def play() -> None:
    """Three weeks."""
    mail = Mail()
    with Rehearsal() as store:
        began: datetime = store.clock.now()
        worker = durable.Worker(store, mail, [onboarding])
        handle = durable.start(onboarding, Progress("Ada"), id="ada", store=store)
        # On the thirteenth day she answers. Nothing executes her onboarding then: the signal brings it on.
        store.clock.after(13 * DAY, lambda: durable.signal(store, "ada", "answer", "very well"))
        worker.run_until_idle()
        answers, took = handle.result(), store.clock.now() - began
        histories = [line.id for line in store.list(prefix="ada~")]
    print(f"  In {took.days} days:")
    for letter in mail.sent:
        print(f"    sent      {letter}")
    for week, answer in enumerate(answers, 1):
        print(f"    heard     week {week}: {answer}")
    print(f"    kept      {', '.join(sorted(histories))}, the weeks that are over")
    letters = [
        "welcome, Ada",
        "Ada, your profile is empty",
        "week 1: how is it going?",
        "week 2: how is it going?",
    ]
    if (mail.sent, answers) != (letters, ["very well", "(silence)"]) or took < timedelta(days=20):
        sys.exit("  That is not as promised!")
    print("\n  Each letter once, however often the run was taken up.")


if __name__ == "__main__":
    play()
