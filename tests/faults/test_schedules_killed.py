"""FAULTS 150: processes that share a schedule of a second, and are killed, lose none of its moments and begin none twice.

`cd tests && python -m harness.schedule_proof URL` does it with eight for two minutes.
"""

from __future__ import annotations

import pytest

from harness.schedule_proof import prove
from harness.support import Database


@pytest.mark.long(20)
def test_150_a_schedule_of_a_second_under_kills_and_restarts(database: Database) -> None:
    found = prove(database.url, database.schema, processes=3, seconds=8.0)
    assert found.killed
    assert found.moments >= 4
    assert (found.missed, found.doubled, found.unfinished) == (0, 0, 0)
