-- The children of a run, by its id in this table: for those who list them, and for a cancellation, which goes down to them.
CREATE INDEX {parent_index} ON {snapshots} ((snapshot->'parent'->>0)) WHERE snapshot->'parent' IS NOT NULL;
