-- Runs that begin when their turn comes: of queues that have limits, or partitions. (`statements.sql` has what begins as soon as it is
-- due.) *Lock in one statement, count in a later one*: its snapshot was taken under the lock. What was locked travels to the next
-- statement in a setting of the transaction, so that all goes in one round trip, through a pooler too. The order of locks: leases'
-- rows, the queue's row, partitions; and what holds a queue's or a partition's row never waits for a lease's.

-- name: free_slots
-- What is held of these queues under leases that have ended holds no slot any more, and is due; whoever has its workflow. That its
-- owner has died is remembered for the next.
WITH ended AS MATERIALIZED (
    SELECT lease.*
      FROM unnest(%(queues)s::text[]) AS asked (queue)
     CROSS JOIN LATERAL (
           SELECT workflow_id, split_part(route, E'\n', 2) AS slot
             FROM {locks}
            WHERE {held_of_queue} AND expires_at <= clock_timestamp()
              FOR UPDATE SKIP LOCKED) AS lease
), freed AS (
    UPDATE {locks} AS lease
       SET owner_token = NULL, owner = 'left ' || lease.owner, due_at = LEAST(due_at, clock_timestamp())
     WHERE workflow_id = ANY (ARRAY(SELECT workflow_id FROM ended))
), {reopened_of_ended}
SELECT count(*) FROM freed_lanes

-- name: admit
-- What has become due waits for its turn from now on, and its partition has one. The answer is whether there may be more: then none
-- is taken, as long as that does not take too long, so that the last has a partition as the first does.
WITH asked AS MATERIALIZED (
    SELECT asked.line, asked.queue,
           EXISTS (SELECT FROM {queues} WHERE name = asked.queue AND {is_limited} OFFSET 0) AS is_limited
      FROM unnest(%(lines)s::text[], %(line_queues)s::text[]) AS asked (line, queue)
), plain AS MATERIALIZED (
    SELECT lease.workflow_id, asked.line, left(asked.queue, -1) || ',null]' AS slot
      FROM asked
     CROSS JOIN generate_series(-10, 9) AS class (priority)
     CROSS JOIN LATERAL (
           SELECT workflow_id
             FROM {locks}
            WHERE route = asked.line AND priority = class.priority::smallint
              AND due_at < 'infinity' AND due_at <= statement_timestamp()
              AND (owner_token IS NULL OR expires_at <= statement_timestamp())
            ORDER BY due_at
              FOR UPDATE SKIP LOCKED) AS lease
     WHERE asked.is_limited
     LIMIT %(most)s
), own AS MATERIALIZED (
    SELECT lease.workflow_id, asked.line, lease.slot
      FROM asked
     CROSS JOIN LATERAL (
           SELECT workflow_id, split_part(route, E'\n', 2) AS slot
             FROM {locks}
            WHERE split_part(route, E'\n', 1) = asked.line AND strpos(route, E'\n') > 0
              AND due_at < 'infinity' AND due_at <= statement_timestamp() AND owner_token IS NULL
            ORDER BY due_at
              FOR UPDATE SKIP LOCKED) AS lease
     LIMIT %(most)s
), found AS MATERIALIZED (
    SELECT * FROM plain UNION ALL SELECT * FROM own
), admitted AS (
    UPDATE {locks} AS lease
       SET route = found.line || E'\t' || found.slot,
           owner_token = NULL,
           owner = CASE WHEN lease.owner_token IS NOT NULL THEN 'left ' || lease.owner
                        WHEN starts_with(lease.owner, 'left ') THEN lease.owner END
      FROM found
     WHERE lease.workflow_id = ANY (ARRAY(SELECT workflow_id FROM found)) AND lease.workflow_id = found.workflow_id
), opened AS (
    INSERT INTO {partitions} AS lane (slot, line, turn)
    SELECT slot, line, clock_timestamp() FROM (SELECT DISTINCT slot, line FROM found) AS asked ORDER BY slot, line
    ON CONFLICT (slot, line) DO UPDATE SET turn = COALESCE(lane.turn, excluded.turn)
)
SELECT set_config(
           'durable.crowded', (GREATEST((SELECT count(*) FROM plain), (SELECT count(*) FROM own)) >= %(most)s)::text, true)

-- name: lock_queues
-- One at a time takes under a queue's limits. What is locked elsewhere is left to whoever takes there now, and is asked for again soon.
SELECT set_config('durable.queues', COALESCE(json_agg(asked.name) FILTER (
           WHERE mine.name IS NOT NULL
              OR NOT asked.is_there AND (%(is_last)s OR current_setting('durable.crowded') = 'false')), '[]')::text, true),
       bool_or(asked.is_open AND mine.name IS NULL) IS TRUE
  FROM (SELECT given.name, kept.name IS NOT NULL AS is_there, (NOT kept.paused AND kept.next_at <= clock_timestamp()) IS TRUE AS is_open
          FROM unnest(%(queues)s::text[]) AS given (name)
          LEFT JOIN LATERAL (SELECT * FROM {queues} WHERE name = given.name OFFSET 0) AS kept ON true) AS asked
  LEFT JOIN (
       SELECT name
         FROM {queues}
        WHERE name = ANY (%(queues)s::text[]) AND NOT paused AND next_at <= clock_timestamp()
          AND (%(is_last)s OR current_setting('durable.crowded') = 'false')
        ORDER BY name
          FOR NO KEY UPDATE SKIP LOCKED) AS mine ON mine.name = asked.name

-- name: lock_partitions
-- Those that have waited for their turn the longest, as many as there is room for in each queue. How many one may give is the room
-- divided among those that there are.
WITH queue AS MATERIALIZED (
    SELECT asked.name, GREATEST(0, LEAST(
               %(count)s::integer,
               CASE WHEN kept.concurrency IS NOT NULL
                    THEN kept.concurrency - (SELECT count(*) FROM {locks} WHERE {held_of_name}) END,
               CASE WHEN kept.rate IS NOT NULL
                    THEN 1 + floor(extract(epoch FROM statement_timestamp() - {allowed_since}) * kept.rate / kept.per) END))::integer AS room
      FROM json_array_elements_text(current_setting('durable.queues')::json) AS asked (name)
      LEFT JOIN LATERAL (SELECT * FROM {queues} WHERE name = asked.name OFFSET 0) AS kept ON true
), lane AS MATERIALIZED (
    SELECT queue.name, queue.room, lane.*
      FROM queue
     CROSS JOIN LATERAL (
           SELECT asked.line
             FROM unnest(%(lines)s::text[], %(line_queues)s::text[]) AS asked (line, queue)
            WHERE asked.queue = queue.name OFFSET 0) AS asked
     CROSS JOIN LATERAL (
           SELECT slot, line, turn
             FROM {partitions}
            WHERE line = asked.line AND turn IS NOT NULL AND turn <= statement_timestamp() + interval '1 s'
            ORDER BY turn
            LIMIT queue.room
              FOR NO KEY UPDATE SKIP LOCKED) AS lane
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY name ORDER BY turn, slot, line) AS place,
           count(*) OVER (PARTITION BY name) AS lanes
      FROM lane
)
SELECT set_config('durable.lanes', COALESCE(json_agg(json_build_object(
           'name', name, 'slot', slot, 'line', line, 'place', place, 'room', room,
           'share', CASE WHEN current_setting('durable.crowded') = 'true' THEN 1 ELSE ceil(room::float8 / LEAST(lanes, room)) END) ORDER BY place), '[]')::text, true)
  FROM placed
 WHERE place <= room

-- name: take_members
-- Of each its most urgent, and of these what was begun before and has waited the longest: one of each, then of those that may give more
-- a second one, until there is no more room. A partition that gives goes to the end; one that has nothing more, or holds all that
-- it may, has no turn: that one for half a minute at the most, since what ends meanwhile cannot see a partition that was opened for
-- another workflow after its own statement began. What is locked elsewhere stays a member, and its partition keeps its turn.
WITH lane AS MATERIALIZED (
    SELECT asked.name, asked.slot, asked.line, asked.place, asked.room, asked.share, kept.partition_concurrency - (
               SELECT count(*)
                 FROM {locks}
                WHERE split_part(route, E'\n', 2) COLLATE "C" = asked.slot AND {is_held_slot}
           ) AS own_room
      FROM json_to_recordset(current_setting('durable.lanes')::json) AS asked (
           name text, slot text, line text, place integer, room integer, share integer)
      LEFT JOIN LATERAL (SELECT * FROM {queues} WHERE name = asked.name OFFSET 0) AS kept ON true
), member AS MATERIALIZED (
    SELECT lane.name, lane.slot, lane.line, lane.place, lane.room, lane.own_room, member.*
      FROM (SELECT * FROM lane ORDER BY place OFFSET 0) AS lane
     CROSS JOIN LATERAL (
           SELECT *, row_number() OVER () AS nth
             FROM (SELECT workflow_id, epoch, owner
                     FROM {locks}
                    WHERE route = lane.line || E'\t' || lane.slot AND due_at < 'infinity'
                    ORDER BY priority, due_at
                    LIMIT GREATEST(0, LEAST(lane.share, lane.own_room))
                      FOR UPDATE SKIP LOCKED) AS few) AS member
), due AS MATERIALIZED (
    SELECT workflow_id, epoch, slot, line, CASE WHEN starts_with(owner, 'left ') THEN owner END AS owner_token,
           CASE WHEN starts_with(owner, 'left ') THEN substr(owner, 6) END AS owner,
           name, 1000 + row_number() OVER (ORDER BY nth, place) AS n
      FROM (SELECT *, row_number() OVER (PARTITION BY slot ORDER BY nth, place) AS in_slot,
                   row_number() OVER (PARTITION BY name ORDER BY nth, place) AS in_queue
              FROM member) AS numbered
     WHERE (in_slot <= own_room) IS NOT FALSE AND in_queue <= room
     ORDER BY n
     LIMIT %(count)s
), taken AS (
    UPDATE {locks} AS lease
       SET epoch = due.epoch + 1,
           owner_token = (due.epoch + 1) || ':' || %(random)s || '.' || due.n,
           owner = %(owner)s,
           expires_at = clock_timestamp() + make_interval(secs => %(seconds)s),
           due_at = clock_timestamp() + make_interval(secs => %(seconds)s),
           priority = CASE WHEN lease.priority >= 0 THEN lease.priority - 10 ELSE lease.priority END,
           route = due.line || E'\n' || due.slot
      FROM due
     WHERE lease.workflow_id = ANY (ARRAY(SELECT workflow_id FROM due)) AND lease.workflow_id = due.workflow_id
    RETURNING lease.workflow_id, lease.epoch, lease.owner_token, split_part(lease.owner, ' ', 1) AS owner, due.n, due.line AS route,
              due.owner_token AS left_by, due.owner AS former
), {header_of_taken}, served AS (
    UPDATE {partitions} AS lane
       SET turn = CASE
               WHEN NOT EXISTS (
                    SELECT FROM {locks}
                     WHERE route = lane.line || E'\t' || lane.slot AND due_at < 'infinity'
                       AND workflow_id <> ALL (ARRAY(SELECT workflow_id FROM due)) OFFSET 0) THEN NULL
               WHEN told.own_room - told.given <= 0 THEN clock_timestamp() + interval '30 s'
               WHEN told.gave > 0 THEN clock_timestamp()
               ELSE lane.turn END
      FROM (SELECT slot, line, own_room,
                   (SELECT count(*) FROM due WHERE slot = lane.slot) AS given,
                   (SELECT count(*) FROM due WHERE slot = lane.slot AND line = lane.line) AS gave
              FROM lane) AS told
     WHERE lane.slot = ANY (ARRAY(SELECT slot FROM lane)) AND lane.slot = told.slot AND lane.line = told.line
), paced AS (
    UPDATE {queues} AS kept
       SET next_at = {allowed_since} + begun.count * kept.per / kept.rate * interval '1 s'
      FROM (SELECT name, count(*) AS count FROM due GROUP BY name) AS begun
     WHERE kept.name = begun.name AND kept.rate IS NOT NULL
), seen AS (
    UPDATE {workers} SET idle = false WHERE id = %(worker)s AND idle AND EXISTS (SELECT FROM due)
)
SELECT run.* FROM {run_taken}

-- name: next_of_queues
-- Seconds until something of these becomes due, or the rate of one lets the next begin that waits.
SELECT extract(epoch FROM LEAST(
           (SELECT min(first.due_at)
              FROM unnest(%(lines)s::text[]) AS asked (line)
             CROSS JOIN LATERAL (
                   SELECT due_at
                     FROM {locks}
                    WHERE split_part(route, E'\n', 1) = asked.line AND strpos(route, E'\n') > 0
                      AND due_at < 'infinity' AND due_at > statement_timestamp()
                    ORDER BY due_at
                    LIMIT 1) AS first),
           (SELECT min(kept.next_at)
              FROM unnest(%(lines)s::text[], %(line_queues)s::text[]) AS asked (line, queue)
             CROSS JOIN LATERAL (
                   SELECT next_at FROM {queues}
                    WHERE name = asked.queue AND NOT paused AND rate IS NOT NULL AND next_at > statement_timestamp() OFFSET 0) AS kept
             WHERE EXISTS (SELECT FROM {partitions} WHERE line = asked.line AND turn IS NOT NULL OFFSET 0))
       ) - statement_timestamp())::float8

-- name: recall_members
-- As `recall`, of what was taken when its turn came.
WITH ended AS MATERIALIZED (
    SELECT lease.*
      FROM unnest(%(queues)s::text[]) AS asked (queue)
     CROSS JOIN LATERAL (
           SELECT workflow_id, split_part(route, E'\n', 2) AS slot
             FROM {locks}
            WHERE {held_of_queue}
              AND CASE WHEN split_part(owner_token, ':', 2) LIKE %(name)s || '.%%'
                       THEN split_part(substr(split_part(owner_token, ':', 2), length(%(name)s) + 2), '.', 1)::integer
                            < %(sending)s END
              FOR UPDATE) AS lease
), freed AS (
    UPDATE {locks}
       SET owner_token = NULL, owner = NULL, expires_at = clock_timestamp(), due_at = clock_timestamp()
     WHERE workflow_id = ANY (ARRAY(SELECT workflow_id FROM ended))
), {reopened_of_ended}
SELECT count(*) FROM freed_lanes

-- name: held_near_of_queues
-- As `held_near`.
SELECT lease.workflow_id, lease.owner_token, lease.owner
  FROM unnest(%(queues)s::text[]) AS asked (queue)
 CROSS JOIN LATERAL (
       SELECT workflow_id, owner_token, owner
         FROM {locks}
        WHERE {held_of_queue} AND due_at < 'infinity' AND due_at > statement_timestamp()
          AND due_at <= statement_timestamp() + make_interval(secs => %(seconds)s)
          AND starts_with(owner, %(host)s) AND owner <> %(owner)s
        LIMIT 1000) AS lease
 LIMIT 1000

-- name: write_queue
-- The row is locked for the rest of the transaction: none takes under its limits meanwhile, and whoever comes later sees these.
INSERT INTO {queues} AS kept (name, concurrency, partition_concurrency, rate, per, burst)
VALUES (%(name)s, %(concurrency)s, %(partition_concurrency)s, %(rate)s, %(per)s, %(burst)s)
ON CONFLICT (name) DO UPDATE
   SET concurrency = excluded.concurrency, partition_concurrency = excluded.partition_concurrency,
       rate = excluded.rate, per = excluded.per, burst = excluded.burst,
       next_at = CASE WHEN (kept.rate, kept.per, kept.burst) IS DISTINCT FROM (excluded.rate, excluded.per, excluded.burst)
                      THEN LEAST(kept.next_at, clock_timestamp()) ELSE kept.next_at END

-- name: pause_queue
INSERT INTO {queues} AS kept (name, paused) VALUES (%(name)s, %(paused)s)
ON CONFLICT (name) DO UPDATE SET paused = excluded.paused

-- name: count_in
-- What is held without a slot, since it was taken before the queue had limits, is counted from now on. One step of the recursion a route.
WITH RECURSIVE known AS (
    (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route >= %(first)s ORDER BY route LIMIT 1)
     UNION ALL
    SELECT (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route > {after_known} ORDER BY route LIMIT 1)
      FROM known
     WHERE starts_with(known.route, %(first)s)
), held AS MATERIALIZED (
    SELECT lease.workflow_id, known.route
      FROM known
     CROSS JOIN LATERAL (
           SELECT workflow_id
             FROM {locks}
            WHERE route = known.route AND due_at < 'infinity' AND owner_token IS NOT NULL
              FOR NO KEY UPDATE) AS lease
     WHERE starts_with(known.route, %(first)s) AND {is_plain_known}
)
UPDATE {locks} AS lease
   SET route = held.route || E'\n' || left(%(name)s, -1) || ',null]'
  FROM held
 WHERE lease.workflow_id = held.workflow_id

-- name: reopen_partitions
-- There may be more room: each of the queue that has lost its turn, or was put off, has one.
WITH lane AS MATERIALIZED (
    SELECT slot, line FROM {partitions}
     WHERE starts_with(slot, left(%(name)s, -1) || ',') AND (turn <= clock_timestamp()) IS NOT TRUE
     ORDER BY slot, line
       FOR NO KEY UPDATE
)
UPDATE {partitions} AS partition
   SET turn = LEAST(turn, clock_timestamp())
  FROM lane
 WHERE partition.slot = lane.slot AND partition.line = lane.line

-- name: queues
-- Those that have limits, are paused, or have runs that are due or held; by the routes of these, one step of the recursion each, however
-- many runs a route has. What is due and what is held are counted as far as it goes quickly.
WITH RECURSIVE known AS (
    (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route >= %(first)s ORDER BY route LIMIT 1)
     UNION ALL
    SELECT (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route > {after_known} ORDER BY route LIMIT 1)
      FROM known
     WHERE starts_with(known.route, %(first)s)
), line AS (
    SELECT DISTINCT {line_of_known} AS line,
           json_build_array({line_of_known}::json->>0, {line_of_known}::json->>1)::text AS spaced
      FROM known
     WHERE starts_with(known.route, %(first)s)
), named AS (
    SELECT line, replace(spaced, '", "', '","') AS name FROM line
), plain AS (
    SELECT named.name,
           (SELECT count(*) FROM (
                SELECT FROM {locks} WHERE route = named.line AND due_at < 'infinity' AND due_at <= statement_timestamp()
                   AND (owner_token IS NULL OR expires_at <= statement_timestamp()) LIMIT %(most)s) AS few)
           + (SELECT count(*) FROM (
                SELECT FROM {locks} WHERE split_part(route, E'\n', 1) = named.line AND strpos(route, E'\n') > 0
                   AND due_at < 'infinity' AND due_at <= statement_timestamp() LIMIT %(most)s) AS few) AS due,
           (SELECT count(*) FROM (
                SELECT FROM {locks} WHERE route = named.line AND due_at < 'infinity' AND owner_token IS NOT NULL
                   AND expires_at > statement_timestamp() LIMIT %(most)s) AS few) AS held
      FROM named
), waiting AS (
    SELECT lane.slot, (SELECT count(*) FROM (
               SELECT FROM {locks} WHERE route = lane.line || E'\t' || lane.slot AND due_at < 'infinity' LIMIT %(most)s) AS few) AS due
      FROM {partitions} AS lane
     WHERE starts_with(lane.slot, %(first)s) AND lane.turn IS NOT NULL
), asked AS (
    SELECT name FROM {queues} WHERE starts_with(name, %(first)s)
     UNION
    SELECT name FROM named
     UNION
    SELECT DISTINCT replace(json_build_array(slot::json->>0, slot::json->>1)::text, '", "', '","') FROM waiting WHERE due > 0
)
SELECT asked.name, kept.concurrency, kept.partition_concurrency, kept.rate, kept.per, kept.burst, COALESCE(kept.paused, false),
       (SELECT count(*) FROM {locks} WHERE {held_of_name}) + COALESCE((SELECT sum(held) FROM plain WHERE name = asked.name), 0)::bigint,
       COALESCE((SELECT sum(due) FROM plain WHERE name = asked.name), 0)::bigint
       + COALESCE((SELECT sum(due) FROM waiting WHERE starts_with(slot, left(asked.name, -1) || ',')), 0)::bigint,
       (SELECT count(DISTINCT slot) FROM waiting
         WHERE due > 0 AND starts_with(slot, left(asked.name, -1) || ',') AND slot::json->>2 IS NOT NULL)
  FROM asked
  LEFT JOIN {queues} AS kept ON kept.name = asked.name
 WHERE asked.name::json->>1 <> ''
 ORDER BY asked.name
