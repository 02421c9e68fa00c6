"""A run as one document: the `Snapshot` that `save` and `load` speak of, and its translation to a journal and back.

The document is the wire format of the documented table, and readable by any tool:

```json
{"formatVersion": 1, "workflowName": "checkout",
 "steps": {"charge": {"name": "charge", "ok": true, "value": {"payment": "p-1"},
                      "at": "2026-01-15T10:29:58.125000Z", "epoch": 1},
           "ship": {"name": "ship", "ok": false, "error": {"type": "builtins:OSError", "message": "no ship"},
                    "cause": {"type": "error", "name": "OSError", "message": "no ship"}}},
 "execution": {"status": "failed", "lastUpdated": "2026-01-15T10:30:00+00:00"},
 "metadata": {"version": 1}, "input": {"order": 7}, "failure": {"error": {"type": "…"}, "again": ["ship"]}}
```

Documents that awaitly wrote are read as well: `_awaitly`.
"""

from durable.snapshots._documents import header_and_records, with_run_id
from durable.snapshots._journals import foreign_failures, journal_of, merge_journal, snapshot_of, with_foreign_failures
from durable.snapshots._snapshot import Snapshot, as_history

__all__ = [
    "Snapshot",
    "as_history",
    "foreign_failures",
    "header_and_records",
    "journal_of",
    "merge_journal",
    "snapshot_of",
    "with_foreign_failures",
    "with_run_id",
]
