-- The documented table may be there already: another tool of its format shares it with us.
CREATE TABLE IF NOT EXISTS {snapshots} (
    id         text PRIMARY KEY,
    snapshot   jsonb NOT NULL,
    updated_at timestamptz DEFAULT now()
);
CREATE INDEX IF NOT EXISTS {snapshots_index} ON {snapshots} (updated_at DESC);

-- `json` and not `jsonb`: it keeps the order of keys and the text of numbers.
CREATE TABLE {steps} (
    workflow_id text NOT NULL,
    seq         integer NOT NULL,
    key         text NOT NULL,
    kind        text NOT NULL,
    nonce       bigint NOT NULL,
    epoch       bigint NOT NULL,
    record      json NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workflow_id, seq)
);

-- The unique constraint makes owner_token a key column: whatever changes it waits for checkpoints in flight, which hold
-- their row FOR KEY SHARE, while a heartbeat, which changes expires_at only, does not. Without it the fence has a hole.
-- Half-empty pages keep the heartbeat's updates on their page (HOT).
CREATE TABLE {locks} (
    workflow_id text PRIMARY KEY,
    epoch       bigint NOT NULL,
    owner_token text,
    owner       text,
    expires_at  timestamptz NOT NULL,
    UNIQUE (workflow_id, owner_token)
) WITH (fillfactor = 50);
