-- Statements over many runs look each one up by LATERAL: one index scan a run, in the order of the runs where rows are
-- locked, whatever the planner believes of a table that it has no statistics of. (As plain joins they scan the journal.)

-- name: take_leases
-- Take each lease that is free, if its claim may execute the run (the same conditions as `runs.is_executable`; `is_foreign` is that
-- of `headers`; a journal without its header cannot be resumed). The first look locks nothing, so that polling does not disturb a
-- holder; what it let through is checked again under the row lock. Time is the server's. What is due is the workers', but where
-- its route says that a call began it (`own` is how such a route begins). Of a run with a route the end of the lease is when a
-- worker may take it; not where a claim only amends it.
WITH asked AS (
    SELECT *
      FROM json_to_recordset(%(claims)s::json) AS asked (
           id text, random text, owner text, seconds float8, dead text, workflow text, function text, version bigint,
           input_hash text, after_failure boolean, may_create boolean, amends boolean, route text, own text)
)
INSERT INTO {locks} AS lease (workflow_id, epoch, owner_token, owner, expires_at, route, priority, due_at)
SELECT asked.id, 1, '1:' || asked.random, asked.owner, clock_timestamp() + make_interval(secs => asked.seconds),
       asked.route, CASE WHEN asked.route IS NOT NULL THEN 5 END,
       CASE WHEN asked.route IS NOT NULL THEN clock_timestamp() + make_interval(secs => asked.seconds) END
  FROM asked
  LEFT JOIN LATERAL (SELECT id, snapshot, {foreign} AS is_foreign FROM {snapshots} WHERE id = asked.id OFFSET 0) AS run ON true
  LEFT JOIN LATERAL (
       SELECT owner_token, expires_at, due_at, route FROM {locks} WHERE workflow_id = asked.id OFFSET 0) AS held ON true
 WHERE (held.expires_at > clock_timestamp() AND held.owner_token IS DISTINCT FROM asked.dead) IS NOT TRUE
   AND (held.due_at IS NULL OR starts_with(held.route, asked.own))
   AND CASE
           WHEN run.id IS NULL
           THEN asked.may_create AND NOT EXISTS (SELECT FROM {steps} WHERE workflow_id = asked.id)
           WHEN run.snapshot->'formatVersion' IS DISTINCT FROM '1' THEN run.snapshot->>'kind' = 'ResumeState'
           WHEN jsonb_typeof(run.snapshot->'execution'->'status') IS DISTINCT FROM 'string' THEN false
           ELSE (run.is_foreign OR run.snapshot->>'workflowName' = asked.workflow)
                AND (asked.function IS NULL
                     OR run.is_foreign
                     OR COALESCE(run.snapshot->'metadata'->>'workflowFunction', asked.function) = asked.function)
                AND COALESCE(run.snapshot->'metadata'->'version', to_jsonb(asked.version)) = to_jsonb(asked.version)
                AND (asked.input_hash IS NULL
                     OR run.is_foreign
                     OR run.snapshot->'metadata'->>'inputHash' IS NOT DISTINCT FROM asked.input_hash
                     OR run.snapshot->'metadata'->>'inputHash' = 'unhashed')
                AND (run.snapshot->'execution'->>'status' IS DISTINCT FROM 'completed' OR run.is_foreign)
                AND (asked.after_failure
                     OR (run.snapshot->'execution'->>'status' IN ('failed', 'cancelled')) IS NOT TRUE)
                AND (asked.amends OR run.snapshot->'execution'->'needsDecision' IS DISTINCT FROM 'true')
       END
 ORDER BY asked.id
ON CONFLICT (workflow_id) DO UPDATE
   SET epoch = lease.epoch + 1,
       owner_token = (lease.epoch + 1) || ':' || split_part(excluded.owner_token, ':', 2),
       owner = excluded.owner,
       expires_at = excluded.expires_at,
       route = COALESCE(lease.route, excluded.route),
       priority = COALESCE(lease.priority, excluded.priority),
       due_at = CASE WHEN COALESCE(lease.route, excluded.route) IS NOT NULL
                          AND (lease.due_at IS NOT NULL
                               OR (SELECT amends FROM asked WHERE id = excluded.workflow_id) IS NOT TRUE)
                     THEN excluded.expires_at END
 WHERE (lease.expires_at <= clock_timestamp() OR lease.owner_token = ANY (%(dead)s::text[]))
   AND (lease.due_at IS NULL OR starts_with(lease.route, (SELECT own FROM asked WHERE id = excluded.workflow_id)))

-- name: open_runs
-- Where the lease is now ours: write the header and input of a new run, or mark an old one as running; what another tool
-- wrote, without a workflow's name, becomes this workflow's. Doing it twice, when the reply to the first time was lost,
-- changes nothing. A run that ended after the first look, and that its claim may not take up again, is left as it ended, and
-- so is one that is only to be amended. The lease is locked also where it was taken before: a claim that was sent twice may
-- come when its run is just being ended.
WITH asked AS (
    SELECT *
      FROM json_to_recordset(%(openings)s::json) AS asked (
           id text, random text, header jsonb, input text, after_failure boolean, amends boolean)
), mine AS MATERIALIZED (
    SELECT lease.workflow_id, lease.epoch, split_part(lease.owner, ' ', 1) AS owner,
           run.header, run.input, run.after_failure
      FROM (SELECT * FROM asked WHERE amends IS NOT TRUE ORDER BY id) AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id, epoch, owner FROM {locks}
            WHERE workflow_id = run.id AND owner_token = epoch || ':' || run.random
              FOR KEY SHARE) AS lease
), fresh AS (
    INSERT INTO {snapshots} (id, snapshot, updated_at)
    SELECT workflow_id,
           header || jsonb_build_object('execution', jsonb_build_object(
               'status', 'running', 'lastUpdated', now(), 'startedAt', now(),
               'epoch', epoch, 'owner', owner, 'began', now())),
           now()
      FROM mine
     ORDER BY workflow_id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), again AS (
    UPDATE {snapshots} AS run
       SET snapshot = CASE
               WHEN NOT {foreign}
               THEN CASE WHEN run.snapshot->'execution'->>'status' IN ('queued', 'running') THEN run.snapshot
                         ELSE run.snapshot - 'cancel' END
               ELSE mine.header || run.snapshot || jsonb_build_object(
                       'workflowName', mine.header->'workflowName',
                       'metadata', mine.header->'metadata' || COALESCE(
                           CASE jsonb_typeof(run.snapshot->'metadata')
                               WHEN 'object' THEN (run.snapshot->'metadata') - {foreign_metadata}
                               WHEN 'null' THEN NULL
                               ELSE run.snapshot->'metadata' END, '{}'))
               END || jsonb_build_object('execution', (
                   SELECT jsonb_strip_nulls(jsonb_build_object(
                              'status', 'running',
                              'lastUpdated', now(),
                              'startedAt', COALESCE(NULLIF(old.of->>'startedAt', ''), to_jsonb(now())#>>'{}'),
                              'epoch', mine.epoch,
                              'owner', mine.owner,
                              'began', CASE WHEN old.is_this THEN old.of->'began' ELSE to_jsonb(now()) END,
                              'earlier', CASE
                                  WHEN old.is_this OR old.of->'epoch' IS NULL THEN old.of->'earlier'
                                  ELSE {earlier_and_last} END))
                     FROM (SELECT this.of,
                                  this.of->'epoch' = to_jsonb(mine.epoch) AND this.of->>'owner' = mine.owner AS is_this,
                                  {earlier}, {last}
                             FROM (SELECT run.snapshot->'execution' AS of) AS this) AS old)),
           updated_at = now()
      FROM mine
     WHERE run.id = ANY (ARRAY(SELECT workflow_id FROM mine)) AND run.id = mine.workflow_id
       AND (run.snapshot->'execution'->>'status' IS DISTINCT FROM 'completed' OR {foreign})
       AND (mine.after_failure OR (run.snapshot->'execution'->>'status' IN ('failed', 'cancelled')) IS NOT TRUE)
       AND run.snapshot->'execution'->'needsDecision' IS DISTINCT FROM 'true'
)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT mine.workflow_id, 0, 'input', 'input', 0, mine.epoch, mine.input::json
  FROM mine
  LEFT JOIN LATERAL (
       SELECT {foreign} AS is_foreign FROM {snapshots} WHERE id = mine.workflow_id OFFSET 0) AS old ON true
 WHERE mine.input IS NOT NULL
   AND (mine.workflow_id IN (SELECT id FROM fresh) OR old.is_foreign)
ON CONFLICT (workflow_id, seq) DO NOTHING

-- name: read_runs
-- A long document is left where it is, and read when the lease is known to be renewed.
SELECT asked.id, lease.epoch, lease.owner_token, lease.owner,
       extract(epoch FROM lease.expires_at - clock_timestamp())::float8 AS expires_in,
       CASE WHEN lease.due_at IS NOT NULL THEN lease.route END AS route,
       run.id IS NOT NULL, CASE WHEN pg_column_size(run.snapshot) <= %(most)s THEN run.snapshot::text END,
       CASE WHEN run.id IS NULL THEN EXISTS (SELECT FROM {steps} WHERE workflow_id = asked.id) END AS is_headless,
       row_security_active({steps_text}) OR row_security_active({snapshots_text})
       OR row_security_active({locks_text}) OR row_security_active({signals_text}) AS is_hidden
  FROM unnest(%(ids)s::text[]) AS asked (id)
  LEFT JOIN LATERAL (SELECT * FROM {locks} WHERE workflow_id = asked.id OFFSET 0) AS lease ON true
  LEFT JOIN LATERAL (SELECT * FROM {snapshots} WHERE id = asked.id OFFSET 0) AS run ON true

-- name: read_document
SELECT snapshot::text FROM {snapshots} WHERE id = %s

-- name: read_journals
-- A page of each journal for its holder; for others only how the run ended. A page has the record at the place where it
-- begins, however long, and as many bytes more as are asked for. The first that does not fit comes without its text: there the
-- next page begins. Moments as seconds, whatever the DateStyle. What is stored is counted first, so that nothing long is uncompressed in vain.
SELECT asked.id, asked.mine, step.seq, step.key, step.kind,
       CASE WHEN stored <= %(most)s AND size <= %(most)s THEN step.record::text END, step.at, step.epoch, step.octets
  FROM (SELECT id, since, EXISTS (
                   SELECT FROM {locks} AS lease
                    WHERE lease.workflow_id = id AND lease.owner_token = lease.epoch || ':' || random) AS mine
          FROM unnest(%(ids)s::text[], %(randoms)s::text[], %(places)s::integer[]) AS asked (id, random, since)
        OFFSET 0) AS asked
 CROSS JOIN LATERAL (
       SELECT *, sum(octets) OVER (ORDER BY seq) AS size
         FROM (SELECT seq, key, kind, record, at, epoch, stored, CASE
                          WHEN seq = asked.since THEN 0
                          WHEN stored <= %(most)s THEN octet_length(record::text)
                          ELSE own END AS octets
                 FROM (SELECT *, sum(own) OVER (ORDER BY seq) AS stored
                         FROM (SELECT seq, key, kind, record, extract(epoch FROM created_at)::float8 AS at, epoch,
                                      CASE WHEN seq = asked.since THEN 0 ELSE pg_column_size(record) END AS own
                                 FROM {steps}
                                WHERE workflow_id = asked.id AND seq >= asked.since
                                  AND (asked.mine OR kind IN ('result', 'failure'))
                                ORDER BY seq
                                LIMIT %(rows)s) AS few) AS counted
                WHERE stored - own <= %(most)s) AS measured
        ORDER BY seq
       OFFSET 0) AS step
 WHERE size - octets <= %(most)s

-- name: checkpoint
-- One round trip, one commit. The key-share lock is the fence: it waits for a transaction that changes the token, and
-- then looks at the token again. (As a CTE it costs a tuple store and a second scan.)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT workflow_id, %s, %s, %s, %s, epoch, %s::json
  FROM {locks}
 WHERE workflow_id = %s AND owner_token = %s
   FOR KEY SHARE
ON CONFLICT (workflow_id, seq) DO NOTHING

-- name: checkpoint_batch
-- The same for many records of many runs; the answer is those that were not written. By the nonce: an old lease and a new
-- one of the same run may ask for the same place at once.
WITH asked AS MATERIALIZED (
    SELECT *
      FROM json_to_recordset(%s::json) AS asked (
           n integer, id text, token text, seq integer, key text, kind text, nonce bigint, record json)
), lease AS MATERIALIZED (
    SELECT held.*
      FROM (SELECT DISTINCT id FROM asked ORDER BY id) AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id, owner_token, epoch FROM {locks} WHERE workflow_id = run.id FOR KEY SHARE) AS held
), written AS (
    INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT asked.id, asked.seq, asked.key, asked.kind, asked.nonce, lease.epoch, asked.record
      FROM asked
      JOIN lease ON lease.workflow_id = asked.id AND lease.owner_token = asked.token
    ON CONFLICT (workflow_id, seq) DO NOTHING
    RETURNING workflow_id, seq, nonce
)
SELECT asked.n
  FROM asked
  LEFT JOIN written ON written.workflow_id = asked.id AND written.seq = asked.seq AND written.nonce = asked.nonce
 WHERE written.seq IS NULL

-- name: transaction_settings
-- The settings under which the record will be written, whatever the body sets meanwhile. A client that stops in the middle is
-- bounded: idle, by the time given (in ms) or less; in a statement, by the server's looking for the client (not on Windows).
SELECT txid_current(),
       current_setting('search_path'), current_setting('role'),
       current_setting('synchronous_commit'), current_setting('statement_timeout'),
       CASE WHEN current_setting('idle_in_transaction_session_timeout')::interval
                 NOT BETWEEN interval '1 ms' AND make_interval(secs => %s)
            THEN set_config('idle_in_transaction_session_timeout', %s, true) END,
       CASE WHEN current_setting('server_version_num')::integer >= 140000 AND version() !~* 'visual|mingw'
            THEN set_config('client_connection_check_interval', '1s', true) END

-- name: transaction_fence
-- As in a checkpoint, and held until the end.
SELECT owner_token, owner, epoch FROM {locks} WHERE workflow_id = %s FOR KEY SHARE

-- name: restore_settings
SELECT set_config('search_path', %s, true), set_config('role', %s, true),
       set_config('synchronous_commit', %s, true), set_config('statement_timeout', %s, true)

-- name: transaction_record
-- Into the transaction that was begun with the fence, or not at all: in any other the epoch is NULL, which is refused, and
-- with it the COMMIT that follows. Likewise where a trigger drops it: the body's work must not be committed without it.
-- `now()` was before the body.
WITH written AS (
    INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, record, epoch, created_at)
    VALUES (%s, %s, %s, %s, %s, %s::json, CASE WHEN txid_current() = %s THEN %s::bigint END, clock_timestamp())
    RETURNING seq
)
SELECT 1 / count(*) FROM written

-- name: finish_batch
-- The lease row before the header before the journal, as everywhere; the leases in the order of their ids. The answer is
-- the runs that were finished: those whose lease is held, whose header is there, and whose records all are. Where a trigger
-- drops a header, or leaves it as it was, the logarithm of 0 fails, where it drops a record the division by 0 does, and with
-- them the whole. The end of a child is a signal to its parent; with the child the answer has the parent, and the signal's name.
WITH asked AS MATERIALIZED (
    SELECT *
      FROM json_to_recordset(%s::json) AS asked (
           id text, token text, status text, records bigint, seq integer, key text, kind text, nonce bigint, record text,
           due_in float8)
), held AS MATERIALIZED (
    SELECT lease.workflow_id, lease.epoch, lease.slot
      FROM (SELECT id, token
              FROM asked
             WHERE records <= (SELECT count(*) FROM {steps} WHERE workflow_id = asked.id)
               AND EXISTS (SELECT FROM {snapshots} WHERE id = asked.id)
             ORDER BY id) AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id, epoch, {slot} AS slot FROM {locks}
            WHERE workflow_id = run.id AND owner_token = run.token
              FOR UPDATE) AS lease
), {reopened_of_held}, header AS (
    UPDATE {snapshots} AS run
       SET snapshot = CASE
               WHEN asked.status IN ('queued', 'running')
                    AND run.snapshot->'execution'->>'status' NOT IN ('queued', 'running')
               THEN run.snapshot - 'cancel' ELSE run.snapshot END || jsonb_build_object('execution', jsonb_strip_nulls(
               COALESCE(run.snapshot->'execution', '{}') || jsonb_build_object(
                   'status', asked.status,
                   'lastUpdated', now(),
                   'completedAt', CASE WHEN asked.status = 'completed' THEN now() END,
                   'error', CASE WHEN asked.status = 'failed' AND asked.record::json->'error'->>'type' IS NOT NULL
                                 THEN jsonb_build_object(
                                     'type', asked.record::json->'error'->>'type',
                                     'step', NULLIF(asked.record::json->>'step', '')) END,
                   'needsDecision', CASE WHEN asked.status = 'failed' AND asked.record::json->'undecided' IS NOT NULL
                                         THEN true END))),
           updated_at = now()
      FROM held
      JOIN asked ON asked.id = held.workflow_id
     WHERE run.id = held.workflow_id
    RETURNING run.id, held.epoch, run.snapshot->'execution'->>'status' IS NOT DISTINCT FROM asked.status AS stands,
              run.snapshot->'parent' AS parent, run.snapshot->'cancel' IS NOT NULL AS is_asked,
              run.snapshot->'cancel'->'with_parent' AS with_parent
), told AS (
    INSERT INTO {signals} (workflow_id, name, payload, nonce)
    SELECT header.parent->>0, header.parent->>1,
           CASE WHEN asked.status = 'cancelled'
                THEN jsonb_strip_nulls(jsonb_build_object('status', asked.status, 'with_parent', header.with_parent))::json
                ELSE json_build_object('status', asked.status, 'record', asked.record::json) END,
           asked.nonce & {below_2_62}
      FROM header
      JOIN asked ON asked.id = header.id
     WHERE header.parent IS NOT NULL AND asked.status IN ('completed', 'failed', 'cancelled')
       AND EXISTS (SELECT FROM {snapshots} WHERE id = header.parent->>0)
), ended AS (
    INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT header.id, asked.seq, asked.key, asked.kind, asked.nonce, header.epoch, asked.record::json
      FROM header
      JOIN asked ON asked.id = header.id
    RETURNING workflow_id
)
UPDATE {locks} AS given_back
   SET owner_token = NULL, owner = NULL, expires_at = clock_timestamp(), due_at = (
           SELECT clock_timestamp() + make_interval(secs => CASE
                      WHEN (SELECT is_asked FROM header WHERE id = asked.id) THEN 0 ELSE asked.due_in END)
             FROM asked
            WHERE asked.id = given_back.workflow_id AND given_back.route IS NOT NULL AND asked.status IN ('queued', 'running')),
       priority = CASE WHEN given_back.priority < 0 THEN given_back.priority + 10 ELSE given_back.priority END
 WHERE given_back.workflow_id = ANY (ARRAY(SELECT workflow_id FROM ended))
   AND ln(((SELECT count(*) FROM header WHERE stands) = (SELECT count(*) FROM held))::integer) = 0
   AND 1 / ((SELECT count(*) FROM ended) = (SELECT count(*) FROM header))::integer = 1
RETURNING given_back.workflow_id, (
          SELECT ARRAY[header.parent->>0, header.parent->>1]
            FROM header
            JOIN asked ON asked.id = header.id AND asked.status IN ('completed', 'failed', 'cancelled')
           WHERE header.id = given_back.workflow_id AND header.parent IS NOT NULL)

-- name: continue_run
-- As the four below, in one transaction, of which the first locks the lease's row: nothing where the token is another, as after the
-- last, which gives the lease a new one. So a write that comes late finds no journal to write to but the one it was meant for. The run
-- keeps its header, and says which continuation it was: the next one whose history can have the id.
WITH held AS MATERIALIZED (
    SELECT workflow_id FROM {locks} WHERE workflow_id = %(id)s AND owner_token = %(token)s FOR UPDATE
)
UPDATE {snapshots} AS run
   SET snapshot = run.snapshot || jsonb_build_object('continued', (
           WITH RECURSIVE tried (number) AS (
               SELECT %(number)s::bigint
                UNION ALL
               SELECT number + 1
                 FROM tried
                WHERE %(keeps)s
                  AND (EXISTS (SELECT FROM {snapshots} WHERE id = %(id)s || '~' || tried.number OFFSET 0)
                       OR EXISTS (SELECT FROM {signals} WHERE workflow_id = %(id)s || '~' || tried.number OFFSET 0))
           )
           SELECT max(number) FROM tried)),
       updated_at = now()
  FROM held
 WHERE run.id = held.workflow_id

-- name: keep_header
-- What the run was is a completed run of its own.
INSERT INTO {snapshots} (id, snapshot, updated_at)
SELECT run.id || '~' || (run.snapshot->>'continued'),
       (run.snapshot - ARRAY['dedup', 'continued', 'parent']) || jsonb_build_object('execution',
           (run.snapshot->'execution') || jsonb_build_object('status', 'completed', 'lastUpdated', now(), 'completedAt', now())),
       now()
  FROM {snapshots} AS run
 WHERE run.id = %(id)s
   AND EXISTS (SELECT FROM {locks} WHERE workflow_id = run.id AND owner_token = %(token)s)

-- name: move_journal
WITH gone AS (
    DELETE FROM {steps}
     WHERE workflow_id = %(id)s AND EXISTS (SELECT FROM {locks} WHERE workflow_id = %(id)s AND owner_token = %(token)s)
    RETURNING *
)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record, created_at)
SELECT run.id || '~' || (run.snapshot->>'continued'), line.*
  FROM {snapshots} AS run
 CROSS JOIN (
       SELECT seq, key, kind, nonce, epoch, record, created_at FROM gone
        UNION ALL
       SELECT max(seq) + 1, 'result', 'result', 0, max(epoch), %(record)s::json, now() FROM gone HAVING count(*) > 0) AS line
 WHERE run.id = %(id)s AND %(keeps)s

-- name: move_signals
-- Those that were received; where they are not kept, no name has them any more. That one with its `dedup` has come stays with the
-- run, under no name.
WITH kept AS (
    UPDATE {signals}
       SET workflow_id = %(id)s || '~' || (SELECT snapshot->>'continued' FROM {snapshots} WHERE id = %(id)s), noticed = true
     WHERE workflow_id = %(id)s AND number = ANY (%(taken)s::bigint[]) AND %(keeps)s
       AND EXISTS (SELECT FROM {locks} WHERE workflow_id = %(id)s AND owner_token = %(token)s)
    RETURNING nonce
), gone AS (
    DELETE FROM {signals}
     WHERE workflow_id = %(id)s AND number = ANY (%(taken)s::bigint[]) AND NOT %(keeps)s
       AND EXISTS (SELECT FROM {locks} WHERE workflow_id = %(id)s AND owner_token = %(token)s)
    RETURNING nonce
)
INSERT INTO {signals} (workflow_id, name, payload, nonce, noticed)
SELECT %(id)s, '', 'null', nonce, true
  FROM (SELECT nonce FROM kept UNION ALL SELECT nonce FROM gone) AS received
 WHERE nonce >= {first_of_dedup}

-- name: begin_anew
-- The answer is the run, if it has.
WITH lease AS (
    UPDATE {locks}
       SET owner_token = %(new_token)s,
           expires_at = clock_timestamp() + make_interval(secs => %(seconds)s),
           due_at = CASE WHEN due_at IS NOT NULL THEN clock_timestamp() + make_interval(secs => %(seconds)s) END
     WHERE workflow_id = %(id)s AND owner_token = %(token)s
    RETURNING workflow_id, epoch
)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT workflow_id, 0, 'input', 'input', %(nonce)s, epoch, %(record)s::json FROM lease
RETURNING workflow_id

-- name: release_batch
-- A run that goes back to having failed says again why. One that is over, and was held to be amended or looked at, is not due.
-- The owner of one that is suspended is what it waits for, as `suspended ["name", …]`. Where it awaits signals its lease was locked
-- by an earlier statement (`lock_leases`): a signal that this one does not see is noticed by a poll, which waits for that lock or
-- comes after it; and who asks that the run be cancelled takes that lock, too, and is seen here or finds that the lease is given
-- back. A child that is given back as cancelled tells its parent. The answer is which were given back, and of each whether its
-- signal, or such a request, is there; and the parent that was told, with the signal's name.
WITH held AS MATERIALIZED (
    SELECT lease.workflow_id, lease.slot, run.status, run.due_in, run.suspended, run.awaits
      FROM (SELECT *
              FROM unnest(%s::text[], %s::text[], %s::text[], %s::float8[], %s::text[], %s::text[])
                AS asked (id, token, status, due_in, suspended, awaits)
             ORDER BY id) AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id, {slot} AS slot FROM {locks}
            WHERE workflow_id = run.id AND owner_token = run.token
              FOR UPDATE) AS lease
), {reopened_of_held}, awaited AS MATERIALIZED (
    SELECT workflow_id
      FROM held
     WHERE EXISTS (
           SELECT FROM {snapshots}
            WHERE id = held.workflow_id AND snapshot->'cancel' IS NOT NULL
              AND snapshot->'execution'->>'status' IN ('queued', 'running'))
        OR EXISTS (
           SELECT
             FROM json_to_recordset(held.awaits::json) AS one (name text, taken bigint[])
            CROSS JOIN LATERAL (
                  SELECT FROM {signals}
                   WHERE workflow_id = held.workflow_id AND name = one.name AND number <> ALL (one.taken)
                   LIMIT 1) AS signal)
), header AS (
    UPDATE {snapshots} AS run
       SET snapshot = run.snapshot || jsonb_build_object('execution', jsonb_strip_nulls(
               COALESCE(run.snapshot->'execution', '{}') || jsonb_build_object(
                   'status', held.status,
                   'error', CASE WHEN held.status = 'failed' THEN (
                       SELECT jsonb_build_object(
                                  'type', failure.record->'error'->>'type', 'step', NULLIF(failure.record->>'step', ''))
                         FROM (SELECT 1 AS place, seq, record FROM {steps} WHERE workflow_id = run.id AND kind = 'failure'
                                UNION ALL
                               SELECT 0, 0, (run.snapshot->'failure')::json WHERE run.snapshot->'failure' IS NOT NULL) AS failure
                        WHERE failure.record->'error'->>'type' IS NOT NULL
                        ORDER BY place DESC, seq DESC
                        LIMIT 1) END)))
      FROM held
     WHERE run.id = held.workflow_id AND held.status IS NOT NULL
    RETURNING run.id, CASE WHEN held.status = 'cancelled' THEN run.snapshot->'parent' END AS parent,
              run.snapshot->'cancel'->'with_parent' AS with_parent
), told AS (
    INSERT INTO {signals} (workflow_id, name, payload, nonce)
    SELECT parent->>0, parent->>1, jsonb_strip_nulls(jsonb_build_object('status', 'cancelled', 'with_parent', with_parent)),
           ('x' || substr(md5(id || clock_timestamp()::text || random()::text), 1, 16))::bit(64)::bigint & {below_2_62}
      FROM header
     WHERE parent IS NOT NULL AND EXISTS (SELECT FROM {snapshots} WHERE id = header.parent->>0)
)
UPDATE {locks} AS lease
   SET owner_token = NULL, expires_at = clock_timestamp(), owner = (
           SELECT held.suspended
             FROM held
            WHERE held.workflow_id = lease.workflow_id AND lease.route IS NOT NULL
              AND NOT EXISTS (SELECT FROM awaited WHERE workflow_id = held.workflow_id)),
       due_at = (
           SELECT CASE WHEN EXISTS (SELECT FROM awaited WHERE workflow_id = held.workflow_id) THEN clock_timestamp()
                       WHEN held.due_in = 'infinity' THEN 'infinity'
                       ELSE clock_timestamp() + make_interval(secs => held.due_in) END
             FROM held
            WHERE held.workflow_id = lease.workflow_id AND lease.route IS NOT NULL
              AND COALESCE(held.status, (
                      SELECT snapshot->'execution'->>'status' FROM {snapshots} WHERE id = held.workflow_id
                  )) IN ('queued', 'running'))
 WHERE workflow_id = ANY (ARRAY(SELECT workflow_id FROM held))
RETURNING lease.workflow_id, lease.workflow_id IN (SELECT workflow_id FROM awaited), (
          SELECT ARRAY[header.parent->>0, header.parent->>1] FROM header WHERE id = lease.workflow_id AND parent IS NOT NULL)

-- name: lock_leases
-- A write still in flight under one of these leases holds the lease's row: after this its outcome is settled.
SELECT lease.workflow_id, lease.owner_token, lease.owner, lease.epoch
  FROM (SELECT DISTINCT id FROM unnest(%s::text[]) AS asked (id) ORDER BY id) AS run
 CROSS JOIN LATERAL (SELECT workflow_id, owner_token, owner, epoch FROM {locks} WHERE workflow_id = run.id FOR UPDATE) AS lease

-- name: read_leases
-- Enough where the reply to a write came, and said that nothing was written: what kept it out is committed.
SELECT lease.workflow_id, lease.owner_token, lease.owner, lease.epoch
  FROM unnest(%s::text[]) AS asked (id)
 CROSS JOIN LATERAL (SELECT workflow_id, owner_token, owner, epoch FROM {locks} WHERE workflow_id = asked.id OFFSET 0) AS lease

-- name: count_records
SELECT asked.id, (SELECT count(*) FROM {steps} WHERE workflow_id = asked.id) FROM unnest(%s::text[]) AS asked (id)

-- name: read_nonces
SELECT step.workflow_id, step.seq, step.nonce
  FROM unnest(%s::text[], %s::integer[]) AS asked (id, seq)
 CROSS JOIN LATERAL (
       SELECT workflow_id, seq, nonce FROM {steps} WHERE workflow_id = asked.id AND seq = asked.seq OFFSET 0) AS step

-- name: renew
-- All leases of a process at once; the answer is those that stand, and whether each was renewed. FOR NO KEY UPDATE lets
-- checkpoints pass. A row that is locked elsewhere is left for the next time: waiting for one would cost all the others.
-- When a run of a worker is due is in an index, so it is put off once in half a lease; a change of expires_at alone stays on its page.
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(%s::text[], %s::text[], %s::float8[]) AS asked (id, token, seconds) ORDER BY id
), kept AS MATERIALIZED (
    SELECT lease.workflow_id, run.seconds
      FROM asked AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id FROM {locks}
            WHERE workflow_id = run.id AND owner_token = run.token
              FOR NO KEY UPDATE SKIP LOCKED) AS lease
), renewed AS (
    UPDATE {locks} AS lease
       SET expires_at = clock_timestamp() + make_interval(secs => kept.seconds),
           due_at = CASE WHEN lease.due_at > clock_timestamp() + make_interval(secs => kept.seconds / 2) THEN lease.due_at
                         WHEN lease.due_at IS NOT NULL THEN clock_timestamp() + make_interval(secs => kept.seconds) END
      FROM kept
     WHERE lease.workflow_id = kept.workflow_id
    RETURNING lease.owner_token
)
SELECT asked.token, renewed.owner_token IS NOT NULL
  FROM asked
  LEFT JOIN renewed ON renewed.owner_token = asked.token
 WHERE renewed.owner_token IS NOT NULL
    OR EXISTS (SELECT FROM {locks} AS lease WHERE lease.workflow_id = asked.id AND lease.owner_token = asked.token)

-- name: cancelled
-- Of these runs those that were cancelled (true), and those that are asked to be, with the reason.
SELECT asked.id, lease.is_taken, run.snapshot->'cancel'->>'reason'
  FROM unnest(%s::text[]) AS asked (id)
 CROSS JOIN LATERAL (
       SELECT owner_token IS NULL AND owner IS NOT DISTINCT FROM 'cancelled' AS is_taken
         FROM {locks} WHERE workflow_id = asked.id OFFSET 0) AS lease
 CROSS JOIN LATERAL (SELECT snapshot FROM {snapshots} WHERE id = asked.id OFFSET 0) AS run
 WHERE lease.is_taken
    OR (run.snapshot->'cancel' IS NOT NULL AND run.snapshot->'execution'->>'status' IN ('queued', 'running'))

-- name: ask_batch
-- Let these runs be cancelled by their owners, where they have not ended. Their leases were locked by an earlier statement
-- (`lock_leases`): what their owners have written is seen here. The answer is of each whether it is to be cancelled at once: it is
-- to be so by force, or was asked before by another request, or has no owner and nothing that is to be done at its end; and whether
-- the request stands there, or need not: where a trigger drops it, nothing is asked. One that
-- has no owner and something to be done is due now, if it is a worker's; else the next claim finds the request.
WITH asked AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%s::json) AS asked (id text, force boolean, reason text, nonce bigint, below boolean)
), judged AS MATERIALIZED (
    SELECT asked.id, asked.nonce, asked.below, lease.is_held, COALESCE(asked.reason, run.snapshot->'cancel'->>'reason') AS reason,
           asked.force
           OR (run.snapshot->'cancel' IS NOT NULL
               AND run.snapshot->'cancel'->'nonce' IS DISTINCT FROM to_jsonb(asked.nonce))
           OR NOT (lease.is_held
                   OR EXISTS (
                      SELECT FROM {steps} AS step
                       WHERE step.workflow_id = asked.id AND step.kind = 'step' AND step.record->'at_end' IS NOT NULL)
                   OR jsonb_path_exists(run.snapshot, '$.steps.*.at_end')) AS ends
      FROM asked
     CROSS JOIN LATERAL (
           SELECT owner_token IS NOT NULL AND expires_at > clock_timestamp() AS is_held
             FROM {locks} WHERE workflow_id = asked.id OFFSET 0) AS lease
     CROSS JOIN LATERAL (SELECT snapshot FROM {snapshots} WHERE id = asked.id OFFSET 0) AS run
     WHERE run.snapshot->'execution'->>'status' IN ('queued', 'running')
), header AS (
    UPDATE {snapshots} AS run
       SET snapshot = run.snapshot || jsonb_build_object('cancel', jsonb_strip_nulls(jsonb_build_object(
               'at', now(), 'reason', judged.reason, 'nonce', judged.nonce,
               'with_parent', CASE WHEN judged.below THEN true END)))
      FROM judged
     WHERE run.id = judged.id AND NOT judged.ends AND run.snapshot->'execution'->>'status' IN ('queued', 'running')
    RETURNING run.id, run.snapshot->'cancel'->'nonce' IS NOT DISTINCT FROM to_jsonb(judged.nonce) AS stands
), due AS (
    UPDATE {locks} AS lease
       SET due_at = clock_timestamp(), owner = CASE WHEN lease.owner_token IS NOT NULL THEN lease.owner END
     WHERE lease.workflow_id = ANY (ARRAY(SELECT id FROM judged WHERE NOT (ends OR is_held)))
       AND lease.route IS NOT NULL AND lease.due_at IS NOT NULL
)
SELECT judged.id, judged.ends, judged.ends OR COALESCE(header.stands, false)
  FROM judged
  LEFT JOIN header ON header.id = judged.id

-- name: find_below
-- The runs below these that have not ended (also below one that was cancelled before, but not below one that has come to its own
-- end), each with the run of these that it is below, and the number of the request that this one is cancelled.
WITH RECURSIVE below AS (
    SELECT id, id AS root FROM unnest(%s::text[]) AS asked (id)
     UNION
    SELECT child.id, below.root
      FROM below
     CROSS JOIN LATERAL (
           SELECT FROM {snapshots}
            WHERE id = below.id AND snapshot->'execution'->>'status' IN ('queued', 'running', 'cancelled')
           OFFSET 0) AS parent
     CROSS JOIN LATERAL (
           SELECT id FROM {snapshots}
            WHERE snapshot->'parent'->>0 = below.id AND snapshot->'parent' IS NOT NULL
           OFFSET 0) AS child
)
SELECT below.id, below.root, (root.snapshot->'cancel'->>'nonce')::bigint
  FROM below
 CROSS JOIN LATERAL (SELECT snapshot FROM {snapshots} WHERE id = below.id OFFSET 0) AS run
 CROSS JOIN LATERAL (SELECT snapshot FROM {snapshots} WHERE id = below.root OFFSET 0) AS root
 WHERE below.id <> below.root AND run.snapshot->'execution'->>'status' IN ('queued', 'running')

-- name: cancel_batch
-- Take the lease from its holder: what it has in flight is settled first, and it can write nothing more. A run
-- that has ended meanwhile is left as it is. The answer is the runs that were cancelled, and those which were running when
-- this began and are not cancelled: they have ended meanwhile, or a trigger keeps their headers as they are. Where one keeps a
-- lease the square root of -1 fails, and with it the whole. Of some it is said that they are cancelled with the run that has
-- started them: what they tell it says so. Any other tells its parent, which the answer has then, with the signal. Where the caller
-- said why, that is kept.
WITH held AS MATERIALIZED (
    SELECT lease.workflow_id, lease.slot, run.is_below, run.reason
      FROM (SELECT id, bool_or(is_below) AS is_below, min(reason) AS reason
              FROM unnest(%s::text[], %s::boolean[], %s::text[]) AS asked (id, is_below, reason)
             GROUP BY id ORDER BY id) AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id, CASE WHEN owner_token IS NULL THEN '' ELSE {slot} END AS slot
             FROM {locks}
            WHERE workflow_id = run.id
              FOR UPDATE) AS lease
), {reopened_of_held}, header AS (
    UPDATE {snapshots} AS run
       SET snapshot = run.snapshot || jsonb_build_object(
               'execution', ((run.snapshot->'execution') - ARRAY['completedAt', 'currentStepId', 'error'])
                            || jsonb_build_object('status', 'cancelled', 'lastUpdated', now())) || COALESCE((
               SELECT jsonb_build_object('cancel', jsonb_build_object('at', now(), 'reason', held.reason))
                 FROM held
                WHERE held.workflow_id = run.id AND held.reason IS NOT NULL), '{}'),
           updated_at = now()
     WHERE run.id = ANY (ARRAY(SELECT workflow_id FROM held))
       AND run.snapshot->'execution'->>'status' IN ('queued', 'running')
    RETURNING run.id, run.snapshot->'execution'->>'status' IS NOT DISTINCT FROM 'cancelled' AS stands,
              run.snapshot->'parent' AS parent
), told AS (
    INSERT INTO {signals} (workflow_id, name, payload, nonce)
    SELECT header.parent->>0, header.parent->>1,
           CASE WHEN held.is_below THEN '{"status":"cancelled","with_parent":true}' ELSE '{"status":"cancelled"}' END::json,
           ('x' || substr(md5(header.id || clock_timestamp()::text || random()::text), 1, 16))::bit(64)::bigint & {below_2_62}
      FROM header
      JOIN held ON held.workflow_id = header.id
     WHERE header.parent IS NOT NULL AND header.stands AND EXISTS (SELECT FROM {snapshots} WHERE id = header.parent->>0)
), lease AS (
    UPDATE {locks}
       SET owner_token = NULL, owner = 'cancelled', expires_at = clock_timestamp(), due_at = NULL,
           route = replace(route, E'\t', E'\n')
     WHERE workflow_id = ANY (ARRAY(SELECT id FROM header WHERE stands))
    RETURNING owner_token IS NULL AND owner IS NOT DISTINCT FROM 'cancelled' AS is_taken
)
SELECT run.id, header.id IS NOT NULL, CASE WHEN NOT held.is_below THEN ARRAY[header.parent->>0, header.parent->>1] END
  FROM held
 CROSS JOIN LATERAL (SELECT id, snapshot FROM {snapshots} WHERE id = held.workflow_id OFFSET 0) AS run
  LEFT JOIN header ON header.id = run.id AND header.stands
 WHERE (header.id IS NOT NULL OR run.snapshot->'execution'->>'status' IN ('queued', 'running'))
   AND sqrt(((SELECT count(*) FROM lease WHERE is_taken)
              = (SELECT count(*) FROM header WHERE stands))::integer - 1) = 0

-- name: signal_batch
-- The answer is, of each, whether its run is there, and whether it is settled: written now, or before by a sending whose reply was
-- lost or with the same `dedup`, or not to be written since its run is not there.
WITH asked AS MATERIALIZED (
    SELECT signal.*, EXISTS (SELECT FROM {snapshots} AS run WHERE run.id = signal.id OFFSET 0) AS is_there
      FROM json_to_recordset(%s::json) AS signal (n integer, id text, name text, payload text, nonce bigint, later boolean)
), sent AS (
    INSERT INTO {signals} (workflow_id, name, payload, nonce)
    SELECT id, name, payload::json, nonce
      FROM asked
     WHERE is_there OR later
     ORDER BY n
    ON CONFLICT (workflow_id, nonce) DO NOTHING
    RETURNING workflow_id, nonce
)
SELECT asked.n, asked.is_there,
       NOT (asked.is_there OR asked.later)
       OR EXISTS (SELECT FROM sent WHERE sent.workflow_id = asked.id AND sent.nonce = asked.nonce)
       OR EXISTS (SELECT FROM {signals} AS signal WHERE signal.workflow_id = asked.id AND signal.nonce = asked.nonce)
  FROM asked

-- name: receive_batch
-- The first signal of these names that was not received yet. By what was received, and not by the greatest number: a smaller
-- one may be committed later.
SELECT asked.n, signal.number, signal.name, signal.payload
  FROM json_to_recordset(%s::json) AS asked (n integer, id text, names text[], taken bigint[])
 CROSS JOIN LATERAL (
       SELECT number, name, payload::text FROM {signals}
        WHERE workflow_id = asked.id AND name = ANY (asked.names) AND number <> ALL (asked.taken)
        ORDER BY number
        LIMIT 1) AS signal

-- name: enqueue
-- Also in a caller's own transaction, which may stay open: it locks no row that is there, and waits for nothing but a transaction
-- that has written the same id or `dedup` and not ended. The lease row before the header before the journal, as everywhere, of a
-- run that is not there; but with a `dedup` the header first, since only that says whether it may be: another run may have it that
-- has not ended. The answer is those that are new.
WITH asked AS MATERIALIZED (
    SELECT DISTINCT ON (COALESCE(header->>'dedup', id)) *, header->'dedup' IS NOT NULL AS is_single
      FROM (SELECT DISTINCT ON (id) *
              FROM json_to_recordset(%(runs)s::json) AS asked (
                   n integer, id text, route text, priority smallint, at timestamptz, delay float8, header jsonb, input text,
                   nonce bigint, parent_token text)
             ORDER BY id, n) AS run
     WHERE NOT EXISTS (SELECT FROM {snapshots} WHERE id = run.id OFFSET 0)
       AND (run.parent_token IS NULL OR EXISTS (
            SELECT FROM {locks} WHERE workflow_id = run.header->'parent'->>0 AND owner_token = run.parent_token OFFSET 0))
       AND NOT EXISTS (SELECT FROM {steps} WHERE workflow_id = run.id OFFSET 0)
       AND NOT EXISTS (SELECT FROM {locks} WHERE workflow_id = run.id OFFSET 0)
       AND NOT EXISTS (
           SELECT FROM {snapshots} AS other
            WHERE other.snapshot->'dedup' = run.header->'dedup' AND other.snapshot->'dedup' IS NOT NULL
              AND other.snapshot->'execution'->>'status' IN ('queued', 'running')
           OFFSET 0)
     ORDER BY COALESCE(header->>'dedup', id), n
), written AS MATERIALIZED (
    SELECT id, is_single,
           header || jsonb_build_object('execution', jsonb_build_object('status', 'queued', 'lastUpdated', now())) AS header
      FROM asked
     ORDER BY id
), single AS (
    INSERT INTO {snapshots} (id, snapshot, updated_at)
    SELECT id, header, now() FROM written WHERE is_single
    ON CONFLICT DO NOTHING
    RETURNING id
), lease AS (
    INSERT INTO {locks} (workflow_id, epoch, expires_at, route, priority, due_at)
    SELECT id, 0, clock_timestamp(), route, priority, COALESCE(at, clock_timestamp() + make_interval(secs => delay))
      FROM asked
     WHERE NOT is_single OR id IN (SELECT id FROM single)
     ORDER BY id
    ON CONFLICT (workflow_id) DO NOTHING
    RETURNING workflow_id
), header AS (
    INSERT INTO {snapshots} (id, snapshot, updated_at)
    SELECT id, header, now() FROM written JOIN lease ON lease.workflow_id = written.id WHERE NOT is_single
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), fresh AS (
    SELECT id FROM single UNION ALL SELECT id FROM header
), input AS (
    INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT asked.id, 0, 'input', 'input', asked.nonce, 0, asked.input::json
      FROM fresh
      JOIN asked ON asked.id = fresh.id
     WHERE asked.input IS NOT NULL
)
SELECT asked.n FROM fresh JOIN asked ON asked.id = fresh.id

-- name: fence_parents
-- Before children are started: until the end of the transaction each parent's token stays what it is, as in a checkpoint.
SELECT lease.workflow_id
  FROM (SELECT DISTINCT id FROM unnest(%(parents)s::text[]) AS asked (id) ORDER BY id) AS run
 CROSS JOIN LATERAL (SELECT workflow_id FROM {locks} WHERE workflow_id = run.id FOR KEY SHARE) AS lease

-- name: begin_children
-- After the children are started (`enqueue`), where they were not there: the records of their parents, of each whose child is
-- its own, and of the same workflow and input. A child that is there, and has failed or was cancelled, is due again; of any other
-- that has ended the end is told once more. What was told of it before counts no more. The answer is what each has led to: the
-- child as it was found, whether it was started just now or by a sending whose reply was lost, whether it is its parent's, and
-- whether the record was written.
WITH asked AS MATERIALIZED (
    SELECT *
      FROM json_to_recordset(%(children)s::json) AS asked (
           n integer, id text, token text, seq integer, key text, kind text, nonce bigint, record json,
           child text, signal text, workflow text, input_hash text, child_nonce bigint)
), found AS MATERIALIZED (
    SELECT asked.n, run.snapshot->>'workflowName' AS workflow, run.snapshot->'metadata'->>'inputHash' AS input_hash,
           run.snapshot->'execution'->>'status' AS status,
           run.snapshot->'execution'->'needsDecision' IS NOT DISTINCT FROM 'true' AS is_undecided,
           EXISTS (SELECT FROM {steps} WHERE workflow_id = run.id AND seq = 0 AND nonce = asked.child_nonce AND kind = 'input')
           OR run.snapshot->'nonce' IS NOT DISTINCT FROM to_jsonb(asked.child_nonce) AS is_mine,
           run.snapshot->'parent' IS NOT DISTINCT FROM jsonb_build_array(asked.id, asked.signal) AS is_own
      FROM asked
     CROSS JOIN LATERAL (SELECT id, snapshot FROM {snapshots} WHERE id = asked.child OFFSET 0) AS run
), written AS (
    INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT asked.id, asked.seq, asked.key, asked.kind, asked.nonce, lease.epoch, asked.record
      FROM asked
      JOIN found ON found.n = asked.n
     CROSS JOIN LATERAL (
           SELECT epoch FROM {locks} WHERE workflow_id = asked.id AND owner_token = asked.token OFFSET 0) AS lease
     WHERE found.is_own AND found.workflow IS NOT DISTINCT FROM asked.workflow
       AND (found.input_hash IS NOT DISTINCT FROM asked.input_hash
            OR found.input_hash = 'unhashed' AND asked.input_hash IS NOT NULL)
    ON CONFLICT (workflow_id, seq) DO NOTHING
    RETURNING workflow_id, seq, nonce
), joined AS MATERIALIZED (
    SELECT asked.*, found.status, found.is_undecided
      FROM asked
      JOIN found ON found.n = asked.n AND NOT found.is_mine
      JOIN written ON written.workflow_id = asked.id AND written.seq = asked.seq AND written.nonce = asked.nonce
), lease AS (
    UPDATE {locks}
       SET due_at = clock_timestamp(), owner = NULL
     WHERE workflow_id = ANY (ARRAY(
               SELECT child FROM joined WHERE status IN ('failed', 'cancelled') AND NOT is_undecided ORDER BY child))
       AND route IS NOT NULL AND owner_token IS NULL
    RETURNING workflow_id
), again AS (
    UPDATE {snapshots} AS run
       SET snapshot = (run.snapshot - 'cancel') || jsonb_build_object('execution',
               (run.snapshot->'execution') - ARRAY['completedAt', 'currentStepId', 'error', 'crashes']
               || jsonb_build_object('status', 'queued', 'lastUpdated', now())),
           updated_at = now()
     WHERE run.id = ANY (ARRAY(SELECT workflow_id FROM lease))
    RETURNING run.id
), taken_back AS (
    UPDATE {signals} AS signal
       SET name = '', noticed = true
      FROM joined
     WHERE signal.workflow_id = joined.id AND signal.name = joined.signal
), told AS (
    INSERT INTO {signals} (workflow_id, name, payload, nonce)
    SELECT joined.id, joined.signal,
           json_strip_nulls(json_build_object('status', joined.status)), joined.nonce & {below_2_62}
      FROM joined
     WHERE joined.status = 'cancelled' AND joined.child NOT IN (SELECT id FROM again)
     UNION ALL
    SELECT joined.id, joined.signal, json_build_object('status', joined.status, 'record', ending.record),
           joined.nonce & {below_2_62}
      FROM joined
     CROSS JOIN LATERAL (
           SELECT record FROM {steps}
            WHERE workflow_id = joined.child AND kind = CASE joined.status WHEN 'completed' THEN 'result' ELSE 'failure' END
            ORDER BY seq DESC
            LIMIT 1) AS ending
     WHERE joined.status IN ('completed', 'failed') AND joined.child NOT IN (SELECT id FROM again)
)
SELECT found.n, found.workflow, found.input_hash, found.status, found.is_mine, found.is_own, written.seq IS NOT NULL
  FROM found
  JOIN asked ON asked.n = found.n
  LEFT JOIN written ON written.workflow_id = asked.id AND written.seq = asked.seq AND written.nonce = asked.nonce

-- name: read_started
-- In a statement of its own, which sees what the one before has waited for.
SELECT asked.n, run.id, run.snapshot->>'workflowName', run.snapshot->'metadata'->>'inputHash',
       run.snapshot->'execution'->>'status',
       EXISTS (SELECT FROM {steps} WHERE workflow_id = run.id AND seq = 0 AND nonce = asked.nonce AND kind = 'input')
       OR run.snapshot->'nonce' IS NOT DISTINCT FROM to_jsonb(asked.nonce)
  FROM json_to_recordset(%(runs)s::json) AS asked (n integer, id text, header json, nonce bigint)
 CROSS JOIN LATERAL (
       SELECT 0 AS place, id, snapshot FROM {snapshots} WHERE id = asked.id
        UNION ALL
       SELECT 1, id, snapshot
         FROM {snapshots}
        WHERE snapshot->'dedup' = (asked.header->'dedup')::jsonb AND snapshot->'dedup' IS NOT NULL
          AND snapshot->'execution'->>'status' IN ('queued', 'running')
        ORDER BY place
        LIMIT 1) AS run

-- name: poll
-- Take what is due of the routes that this worker has: first what was begun before, whose priority is ten less until it has ended,
-- or is to be tried again; then the most urgent. Rows are met one by one, so that no more are locked than are taken, and none that is
-- locked is waited for. A run that was held before, and is due, was left by its owner: the lease has ended. Each of the three
-- conditions on due_at is needed: `due_at <= now` does not imply to the planner that the index has it. The answer is what was taken,
-- with its input where nothing else can be in its journal; when the next run is due, where all that is due was taken; a floor, where
-- one is asked for; the queues of which nothing is taken here, since each run waits for its turn (see `queues.sql`); and of the
-- worker's schedules those that are due, and when the next one is. While a transaction is open elsewhere, what has ended stays in the
-- index, and each poll would have to pass all of it. Below the floor nothing was due but what is committed late: what begins two
-- seconds before it, or later, is found at once, and the rest by the next poll that has no floor. (A float loses microseconds.)
WITH due AS MATERIALIZED (
    SELECT lease.*
      FROM (SELECT asked.route, class.priority::smallint
              FROM unnest(%(routes)s::text[], %(route_queues)s::text[]) WITH ORDINALITY AS asked (route, queue, place)
             CROSS JOIN generate_series(-10, 9) AS class (priority)
             WHERE NOT EXISTS (SELECT FROM {queues} WHERE name = asked.queue AND {is_limited} OFFSET 0)
             ORDER BY class.priority, asked.place) AS way
     CROSS JOIN LATERAL (
           SELECT workflow_id, epoch, owner_token, owner, route
             FROM {locks}
            WHERE route = way.route AND priority = way.priority
              AND due_at < 'infinity' AND due_at <= statement_timestamp()
              AND due_at >= COALESCE(to_timestamp(%(floor)s::float8), '-infinity')
              AND (owner_token IS NULL OR expires_at <= statement_timestamp())
            ORDER BY due_at
              FOR UPDATE SKIP LOCKED) AS lease
     LIMIT %(count)s
), taken AS (
    UPDATE {locks} AS lease
       SET epoch = due.epoch + 1,
           owner_token = (due.epoch + 1) || ':' || %(random)s || '.' || due.n,
           owner = %(owner)s,
           expires_at = clock_timestamp() + make_interval(secs => %(seconds)s),
           due_at = clock_timestamp() + make_interval(secs => %(seconds)s),
           priority = CASE WHEN lease.priority >= 0 THEN lease.priority - 10 ELSE lease.priority END
      FROM (SELECT *, row_number() OVER () AS n FROM due) AS due
     WHERE lease.workflow_id = ANY (ARRAY(SELECT workflow_id FROM due)) AND lease.workflow_id = due.workflow_id
    RETURNING lease.workflow_id, lease.epoch, lease.owner_token, split_part(lease.owner, ' ', 1) AS owner, due.n, due.route,
              due.owner_token AS left_by, due.owner AS former
), {header_of_taken}, seen AS (
    UPDATE {workers}
       SET idle = idle AND NOT EXISTS (SELECT FROM due), seen_at = clock_timestamp()
     WHERE id = %(worker)s
       AND (seen_at < statement_timestamp() - interval '10 s' OR idle AND EXISTS (SELECT FROM due))
)
SELECT extract(epoch FROM next.due_at - statement_timestamp())::float8,
       (SELECT count(*) FROM {workers} WHERE seen_at > statement_timestamp() - interval '20 s'),
       (SELECT extract(epoch FROM LEAST(min(first.due_at), statement_timestamp() - interval '2 s'))::float8 - 0.00001
          FROM unnest(%(routes)s::text[]) AS asked (route)
         CROSS JOIN generate_series(-10, 9) AS class (priority)
         CROSS JOIN LATERAL (
               SELECT due_at
                 FROM {locks}
                WHERE route = asked.route AND priority = class.priority::smallint AND due_at < 'infinity'
                ORDER BY due_at
                LIMIT 1) AS first
        HAVING %(asks_floor)s),
       ARRAY(
           SELECT DISTINCT asked.queue
             FROM unnest(%(routes)s::text[], %(route_queues)s::text[]) AS asked (route, queue)
            WHERE EXISTS (SELECT FROM {queues} WHERE name = asked.queue AND {is_limited} OFFSET 0)
               OR EXISTS (SELECT FROM {partitions} WHERE line = asked.route AND turn IS NOT NULL OFFSET 0)
               OR EXISTS (
                   SELECT FROM {locks}
                    WHERE split_part(route, E'\n', 1) = asked.route AND strpos(route, E'\n') > 0
                      AND due_at < 'infinity' AND due_at <= statement_timestamp() OFFSET 0)),
       (SELECT json_build_object(
                   'now', statement_timestamp(),
                   'next_in', extract(epoch FROM min(due_at) FILTER (WHERE NOT is_due) - statement_timestamp())::float8,
                   'due', json_agg(json_build_object(
                       'id', id, 'cron', cron, 'zone', zone, 'every', every, 'missed', missed, 'overlap', overlap, 'start', start,
                       'revision', revision, 'due_at', due_at, 'is_open', is_open)) FILTER (WHERE is_due))::text
          FROM unnest(%(schedules)s::text[]) AS asked (name)
         CROSS JOIN LATERAL (
               SELECT *, due_at <= statement_timestamp() IS NOT FALSE AS is_due,
                      EXISTS (SELECT FROM {snapshots}
                               WHERE id = schedule.last_id
                                 AND snapshot->'execution'->>'status' IN ('queued', 'running')
                              OFFSET 0) AS is_open
                 FROM {schedules} AS schedule
                WHERE id = asked.name AND NOT paused
               OFFSET 0) AS mine
         WHERE NOT (overlap = 'queue' AND is_open AND due_at IS NOT NULL AND is_due)
        HAVING count(*) > 0), run.*
  FROM (SELECT min(first.due_at) AS due_at
          FROM unnest(%(routes)s::text[]) AS asked (route)
         CROSS JOIN generate_series(-10, 9) AS class (priority)
         CROSS JOIN LATERAL (
               SELECT due_at
                 FROM {locks}
                WHERE route = asked.route AND priority = class.priority::smallint
                  AND due_at < 'infinity' AND due_at > statement_timestamp()
                ORDER BY due_at
                LIMIT 1) AS first
         WHERE (SELECT count(*) FROM due) < %(count)s) AS next
  LEFT JOIN {run_taken} ON true

-- name: notice
-- Signals that no poll has noticed, with the leases of their runs locked, which are looked at by the next statement: what a run is
-- suspended for stands under that lock. A lease that is locked elsewhere leaves its signals for the next poll. What was sent to a run
-- that is not there is found by the run itself, which looks before it is suspended. While a transaction is open elsewhere, what was
-- noticed stays in the index, and what it has sent passes for nothing: only a poll that looks for all else, too, passes over that.
WITH fresh AS MATERIALIZED (
    SELECT number, workflow_id
      FROM {signals}
     WHERE NOT noticed
     ORDER BY number
     LIMIT 1000
       FOR NO KEY UPDATE SKIP LOCKED
), lease AS MATERIALIZED (
    SELECT held.workflow_id
      FROM (SELECT DISTINCT workflow_id FROM fresh ORDER BY workflow_id) AS run
     CROSS JOIN LATERAL (
           SELECT workflow_id FROM {locks} WHERE workflow_id = run.workflow_id FOR NO KEY UPDATE SKIP LOCKED) AS held
)
SELECT set_config('durable.noticed', COALESCE(json_agg(number), '[]')::text, true)
  FROM fresh
 WHERE workflow_id IN (SELECT workflow_id FROM lease)
    OR NOT EXISTS (SELECT FROM {locks} WHERE workflow_id = fresh.workflow_id OFFSET 0)

-- name: wake_suspended
-- The runs that are suspended until one of these signals comes, or until then at the latest, are due. The answer is their routes.
WITH signal AS MATERIALIZED (
    SELECT sent.*
      FROM json_array_elements_text(current_setting('durable.noticed')::json) AS asked (number)
     CROSS JOIN LATERAL (
           SELECT number, workflow_id, name FROM {signals} WHERE number = asked.number::bigint OFFSET 0) AS sent
), seen AS (
    UPDATE {signals} SET noticed = true WHERE number = ANY (ARRAY(SELECT number FROM signal))
), woken AS (
    UPDATE {locks} AS lease
       SET due_at = clock_timestamp(), owner = NULL
     WHERE workflow_id = ANY (ARRAY(SELECT workflow_id FROM signal))
       AND owner_token IS NULL
       AND CASE WHEN starts_with(owner, 'suspended ') THEN EXISTS (
               SELECT FROM signal
                WHERE signal.workflow_id = lease.workflow_id AND substr(lease.owner, 11)::jsonb ? signal.name) END
    RETURNING {line} AS route
)
SELECT DISTINCT route FROM woken

-- name: wake_awaiting
-- After signals are committed, in a transaction of its own: the runs that are suspended until one of these names comes are due, and
-- no poll is to notice their signals again. A lease that is locked elsewhere leaves that to a poll. The answer is their routes.
WITH sent AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%s::json) AS asked (id text, name text, nonce bigint) ORDER BY id
), lease AS MATERIALIZED (
    SELECT held.workflow_id, sent.nonce
      FROM sent
     CROSS JOIN LATERAL (
           SELECT workflow_id FROM {locks}
            WHERE workflow_id = sent.id AND owner_token IS NULL
              AND CASE WHEN starts_with(owner, 'suspended ') THEN substr(owner, 11)::jsonb ? sent.name END
              FOR NO KEY UPDATE SKIP LOCKED) AS held
), seen AS (
    UPDATE {signals} AS signal
       SET noticed = true
      FROM lease
     WHERE signal.workflow_id = lease.workflow_id AND signal.nonce = lease.nonce
), woken AS (
    UPDATE {locks}
       SET due_at = clock_timestamp(), owner = NULL
     WHERE workflow_id = ANY (ARRAY(SELECT workflow_id FROM lease))
    RETURNING {line} AS route
)
SELECT DISTINCT route FROM woken

-- name: say_idle
-- Before the poll after which the worker rests: of what is started later, the start wakes it. What has long been silent goes.
WITH silent AS (
    DELETE FROM {workers} WHERE seen_at < clock_timestamp() - interval '1 day'
)
INSERT INTO {workers} AS worker (id, routes, owner, idle, seen_at)
VALUES (%(worker)s, %(serves)s::text[], %(owner)s, true, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET idle = true, seen_at = excluded.seen_at

-- name: drain
UPDATE {workers} SET idle = false, leaving = true WHERE id = %(worker)s

-- name: leave
DELETE FROM {workers} WHERE id = %(worker)s

-- name: wake
-- One idle worker for each run that is due now, if there are so many, each by its own channel: the others hear nothing. An array,
-- which is made once: where the planner looped over an IN (…), it would be asked for each row, and find other workers each time.
WITH woken AS (
    UPDATE {workers}
       SET idle = false
     WHERE id = ANY (ARRAY(
           SELECT id
             FROM {workers}
            WHERE idle AND seen_at > clock_timestamp() - interval '20 s' AND routes && %(routes)s::text[]
            ORDER BY seen_at DESC
            LIMIT %(count)s
              FOR UPDATE SKIP LOCKED))
    RETURNING id
)
SELECT pg_notify('durable_' || id, '') FROM woken

-- name: wake_due
-- The same for whatever is due of a store, whose routes begin so: for what was started in transactions of others. One step of the
-- recursion a route, and of each as many as there may be workers.
WITH RECURSIVE known AS (
    (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route >= %(first)s ORDER BY route LIMIT 1)
     UNION ALL
    SELECT (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route > {after_known} ORDER BY route LIMIT 1)
      FROM known
     WHERE starts_with(known.route, %(first)s)
), due AS MATERIALIZED (
    SELECT {line} AS route, (
               SELECT count(*)
                 FROM (SELECT
                         FROM {locks} AS lease
                        WHERE lease.route = known.route AND lease.due_at < 'infinity' AND lease.due_at <= clock_timestamp()
                          AND (lease.owner_token IS NULL OR lease.expires_at <= clock_timestamp())
                        LIMIT 100) AS few) AS count
      FROM known
     WHERE starts_with(known.route, %(first)s)
), woken AS (
    UPDATE {workers}
       SET idle = false
     WHERE id = ANY (ARRAY(
           SELECT id
             FROM {workers}
            WHERE idle AND seen_at > clock_timestamp() - interval '20 s'
              AND routes && ARRAY(SELECT route FROM due WHERE count > 0)
            ORDER BY seen_at DESC
            LIMIT (SELECT sum(count) FROM due)
              FOR UPDATE SKIP LOCKED))
    RETURNING id
)
SELECT pg_notify('durable_' || id, '') FROM woken

-- name: put_schedules
-- Each in the place of what there was, whose row is not touched where it says the same. A new timetable is never applied to the past:
-- a poll finds out when it is due.
INSERT INTO {schedules} AS schedule (id, cron, zone, every, missed, overlap, start)
SELECT id, cron, zone, every, missed, overlap, start
  FROM json_to_recordset(%(schedules)s::json) AS asked (
       id text, cron text, zone text, every float8, missed text, overlap text, start json)
 ORDER BY id
ON CONFLICT (id) DO UPDATE
   SET cron = excluded.cron,
       zone = excluded.zone,
       every = excluded.every,
       missed = excluded.missed,
       overlap = excluded.overlap,
       start = excluded.start,
       revision = schedule.revision + 1,
       due_at = CASE WHEN schedule.cron IS NOT DISTINCT FROM excluded.cron AND schedule.zone = excluded.zone
                          AND schedule.every IS NOT DISTINCT FROM excluded.every
                     THEN schedule.due_at END
 WHERE schedule.cron IS DISTINCT FROM excluded.cron OR schedule.zone <> excluded.zone
    OR schedule.every IS DISTINCT FROM excluded.every OR schedule.missed <> excluded.missed
    OR schedule.overlap <> excluded.overlap OR schedule.start::text <> excluded.start::text

-- name: tick
-- Begin the runs of a schedule's moments and say when it is due next, if it stands as it was found: of any number of workers one does.
-- A row that another one has locked is not waited for: it is being ticked. Of a run whose id is there already, that one stands, or
-- what is left of it: the moment is over. The lease row before the header before the journal, as everywhere.
WITH due AS MATERIALIZED (
    SELECT id
      FROM {schedules}
     WHERE id = %(id)s AND revision = %(revision)s AND due_at IS NOT DISTINCT FROM %(due_at)s::timestamptz AND NOT paused
       FOR UPDATE SKIP LOCKED
), ticked AS (
    UPDATE {schedules} AS schedule
       SET due_at = %(next_at)s::timestamptz,
           last_at = COALESCE(%(last_at)s::timestamptz, schedule.last_at),
           last_id = COALESCE(%(last_id)s::text, schedule.last_id)
      FROM due
     WHERE schedule.id = due.id
    RETURNING schedule.id
), asked AS MATERIALIZED (
    SELECT *
      FROM json_to_recordset(%(runs)s::json) AS run (
           id text, route text, priority smallint, header jsonb, input text, nonce bigint)
     WHERE EXISTS (SELECT FROM ticked)
       AND NOT EXISTS (SELECT FROM {snapshots} WHERE id = run.id OFFSET 0)
       AND NOT EXISTS (SELECT FROM {steps} WHERE workflow_id = run.id OFFSET 0)
       AND NOT EXISTS (SELECT FROM {locks} WHERE workflow_id = run.id OFFSET 0)
     ORDER BY id
), lease AS (
    INSERT INTO {locks} (workflow_id, epoch, expires_at, route, priority, due_at)
    SELECT id, 0, clock_timestamp(), route, priority, clock_timestamp() FROM asked ORDER BY id
    ON CONFLICT (workflow_id) DO NOTHING
    RETURNING workflow_id
), header AS (
    INSERT INTO {snapshots} (id, snapshot, updated_at)
    SELECT id,
           header || jsonb_build_object('execution', jsonb_build_object('status', 'queued', 'lastUpdated', now())),
           now()
      FROM asked
      JOIN lease ON lease.workflow_id = asked.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), input AS (
    INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT asked.id, 0, 'input', 'input', asked.nonce, 0, asked.input::json
      FROM header
      JOIN asked ON asked.id = header.id
     WHERE asked.input IS NOT NULL
)
SELECT id FROM ticked

-- name: pause_schedule
-- What was paused is due when a poll has found out when, from then on. The answer is whether it is there.
WITH changed AS (
    UPDATE {schedules}
       SET paused = %(paused)s, due_at = NULL, revision = revision + 1
     WHERE id = %(id)s AND paused <> %(paused)s
)
SELECT id FROM {schedules} WHERE id = %(id)s

-- name: delete_schedule
DELETE FROM {schedules} WHERE id = %(id)s RETURNING id

-- name: recall
-- Give back what a poll has taken whose reply was lost: by any of its earlier sendings, for the last may have been lost on its
-- way. A later one has recalled this one, which is late, and its worker holds what it was granted.
UPDATE {locks}
   SET owner_token = NULL, owner = NULL, expires_at = clock_timestamp(), due_at = clock_timestamp()
 WHERE workflow_id = ANY (ARRAY(
       SELECT lease.workflow_id
         FROM unnest(%(routes)s::text[]) AS asked (route)
        CROSS JOIN generate_series(-10, 9) AS class (priority)
        CROSS JOIN LATERAL (
              SELECT workflow_id
                FROM {locks}
               WHERE route = asked.route AND priority = class.priority::smallint
                 AND due_at < 'infinity' AND due_at > statement_timestamp()
                 AND CASE WHEN split_part(owner_token, ':', 2) LIKE %(name)s || '.%%'
                          THEN split_part(substr(split_part(owner_token, ':', 2), length(%(name)s) + 2), '.', 1)::integer
                               < %(sending)s END
                 FOR UPDATE) AS lease))

-- name: held_near
-- The leases of other processes of this machine, which may be dead. `IS TRUE` and the limit within keep the planner from walks
-- through a whole index, of tokens or for all classes, which it takes for cheap where few leases are held, or near their end.
SELECT lease.workflow_id, lease.owner_token, lease.owner
  FROM unnest(%(routes)s::text[]) AS asked (route)
 CROSS JOIN generate_series(-10, 9) AS class (priority)
 CROSS JOIN LATERAL (
       SELECT workflow_id, owner_token, owner
         FROM {locks}
        WHERE route = asked.route AND priority = class.priority::smallint
          AND due_at < 'infinity' AND due_at > statement_timestamp()
          AND due_at <= statement_timestamp() + make_interval(secs => %(seconds)s)
          AND (owner_token IS NOT NULL) IS TRUE AND starts_with(owner, %(host)s) AND owner <> %(owner)s
        LIMIT 1000) AS lease
 LIMIT 1000

-- name: expire
-- The leases of owners that are dead, to be taken by the next poll of any worker.
UPDATE {locks}
   SET expires_at = clock_timestamp(), due_at = clock_timestamp()
 WHERE workflow_id = ANY (%(dead_ids)s::text[]) AND owner_token = ANY (%(dead)s::text[])

-- name: find_home
-- Where the tables are, and whether the role may ask which server that is.
SELECT current_database()::text, namespace.nspname::text,
       has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
  FROM pg_catalog.pg_class AS class
  JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE class.oid = to_regclass({snapshots_text})

-- name: identify_server
SELECT system_identifier::text FROM pg_control_system()

-- name: locate_tables
-- Asked on the connection of a caller: by names, since looking one up may be forbidden, and would end the transaction.
SELECT current_database()::text, has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'),
       EXISTS (SELECT FROM pg_catalog.pg_class AS class
                 JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
                WHERE namespace.nspname = %(schema)s::text AND class.relname = %(table)s::text)

-- name: columns
SELECT asked.name, attribute.attname, format_type(attribute.atttypid, attribute.atttypmod)
  FROM unnest(%(tables)s::text[]) AS asked (name)
  JOIN pg_attribute AS attribute ON attribute.attrelid = to_regclass(asked.name)
 WHERE attribute.attnum > 0 AND NOT attribute.attisdropped

-- name: keys
-- What makes columns key columns: indexes that are unique, immediate, valid, over plain columns and all rows.
SELECT asked.name, array_agg(attribute.attname::text)
  FROM unnest(%(tables)s::text[]) AS asked (name)
  JOIN pg_index AS index ON index.indrelid = to_regclass(asked.name)
  JOIN pg_attribute AS attribute
    ON attribute.attrelid = index.indrelid
   AND attribute.attnum = ANY ((index.indkey::int2[])[0:index.indnkeyatts - 1])
 WHERE index.indisunique AND index.indimmediate AND index.indisvalid
   AND index.indpred IS NULL AND index.indexprs IS NULL
 GROUP BY asked.name, index.indexrelid

-- name: tables
-- What an ordinary table is not: emptied by a crash, or with rows that this role may not see.
SELECT asked.name, class.relpersistence <> 'p', row_security_active(class.oid)
  FROM unnest(%(tables)s::text[]) AS asked (name)
  JOIN pg_class AS class ON class.oid = to_regclass(asked.name)

-- name: version
SELECT max(version) FROM {migrations}

-- name: migrations_exist
SELECT to_regclass(%(migrations)s) IS NOT NULL

-- name: create_migrations
CREATE TABLE IF NOT EXISTS {migrations} (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: record_migration
INSERT INTO {migrations} (version) VALUES (%(version)s)
