-- The runs of a workflow, newest first. (None for metadata: it would add a tenth to what a short run writes.)
CREATE INDEX {workflow_index} ON {snapshots} ((snapshot->>'workflowName'), updated_at DESC, id DESC);
