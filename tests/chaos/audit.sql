-- Who wrote what under which lease, judged when the transaction is about to commit: what the statement saw is not what
-- stands there then, if nothing held the lease in between. `writer` is the process that wrote; `owner` the lease's then.
CREATE TABLE audit_writes (
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    operation text NOT NULL,
    run       text NOT NULL,
    key       text NOT NULL,
    kind      text NOT NULL,
    epoch     bigint NOT NULL,
    writer    text NOT NULL,
    lease     bigint,
    owner     text,
    ended     boolean, -- the same transaction has given the lease back
    xact      text NOT NULL DEFAULT pg_current_xact_id()::text
);

CREATE FUNCTION audit_write() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    line record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    INSERT INTO audit_writes (operation, run, key, kind, epoch, writer, lease, owner, ended)
    SELECT TG_OP, line.workflow_id, line.key, line.kind, line.epoch, current_setting('application_name'),
           lease.epoch, split_part(lease.owner, ' ', 1), lease.xmin = pg_current_xact_id()::xid
      FROM (SELECT) AS one
      LEFT JOIN (SELECT *, xmin FROM durable_locks WHERE workflow_id = line.workflow_id) AS lease ON true;
    RETURN NULL;
END $$ SET search_path FROM CURRENT;

CREATE CONSTRAINT TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON durable_steps
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_write();

-- Every change of hands: whose lease it was, and how much of it was left.
CREATE TABLE audit_leases (
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    run      text NOT NULL,
    old      bigint,
    new      bigint NOT NULL,
    owner    text,
    token    text,
    left_of  interval,
    heir     text,  -- whose it is then; 'cancelled' if it is to be nobody's
    taken_by text NOT NULL
);

CREATE FUNCTION audit_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_leases (run, old, new, owner, token, left_of, heir, taken_by)
    VALUES (NEW.workflow_id, OLD.epoch, NEW.epoch, split_part(OLD.owner, ' ', 1), NEW.owner_token,
            OLD.expires_at - clock_timestamp(), NEW.owner, current_setting('application_name'));
    RETURN NULL;
END $$ SET search_path FROM CURRENT;

CREATE TRIGGER audit AFTER UPDATE ON durable_locks
    FOR EACH ROW WHEN (OLD.owner_token IS DISTINCT FROM NEW.owner_token) EXECUTE FUNCTION audit_lease();

-- A header that was completed, and is written again.
CREATE TABLE audit_headers (run text NOT NULL, old text NOT NULL, new text, writer text NOT NULL);

CREATE FUNCTION audit_header() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_headers
    VALUES (NEW.id, OLD.snapshot->'execution'->>'status', NEW.snapshot->'execution'->>'status',
            current_setting('application_name'));
    RETURN NULL;
END $$ SET search_path FROM CURRENT;

CREATE TRIGGER audit AFTER UPDATE ON durable_snapshots
    FOR EACH ROW WHEN (OLD.snapshot->'execution'->>'status' = 'completed') EXECUTE FUNCTION audit_header();

-- What transactions write.
CREATE TABLE accounts (name text PRIMARY KEY, cents bigint NOT NULL);
INSERT INTO accounts SELECT n || ' ' || side, 0 FROM generate_series(0, 2) AS n, (VALUES ('a'), ('b')) AS sides (side);
CREATE TABLE ledger (run text NOT NULL, key text NOT NULL, number bigint NOT NULL, cents bigint NOT NULL);
