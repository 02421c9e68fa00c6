-- A run that waits holds nothing; the owner in its lease's row, which has no token, says what it waits for: see `suspended`. Polls
-- notice the signals that have come, each once. (To those that were there before this, no run has been suspended; and a default that
-- is changed afterwards rewrites no row.)
ALTER TABLE {signals} ADD COLUMN noticed boolean NOT NULL DEFAULT true;
ALTER TABLE {signals} ALTER COLUMN noticed SET DEFAULT false;
CREATE INDEX {unnoticed_index} ON {signals} (number) WHERE NOT noticed;
