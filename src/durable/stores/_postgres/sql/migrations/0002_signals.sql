-- Messages to runs. The run need not be there yet; `number` is the order in which they are received. Which were received
-- stands in the journal, with the step that received it.
CREATE TABLE {signals} (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_id text NOT NULL,
    name        text NOT NULL,
    payload     json NOT NULL,
    nonce       bigint NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workflow_id, nonce)
);
CREATE INDEX ON {signals} (workflow_id, name, number);
