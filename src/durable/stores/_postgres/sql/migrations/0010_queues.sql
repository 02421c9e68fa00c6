-- Limits on which the fleet agrees. What can be counted is not stored: of a queue with limits, how many runs are held is counted in an
-- index. `name` is the store's prefix and the queue's name, as JSON; `next_at` is when its rate lets the next run begin.
CREATE TABLE {queues} (
    name                  text PRIMARY KEY,
    concurrency           integer,
    partition_concurrency integer,
    rate                  integer,
    per                   float8,
    burst                 integer,
    next_at               timestamptz NOT NULL DEFAULT '-infinity',
    paused                boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- Whose turn it is. A slot is what `partition_concurrency` counts in (store's prefix, queue and partition, as JSON; a partition of null
-- has the runs that were given none), and a line the route of a workflow and version. `turn` is since when it waits for it; NULL
-- where nothing is due of it; a moment to come where all that it may hold is held, at which that is looked at again.
CREATE TABLE {partitions} (
    slot text NOT NULL,
    line text NOT NULL,
    turn timestamptz,
    PRIMARY KEY (slot, line)
) WITH (fillfactor = 50);
CREATE INDEX {turn_index} ON {partitions} (line, turn) WHERE turn IS NOT NULL;

-- The route of a run with a slot has that behind a newline; and behind a tab as long as it is due and waits for its turn, which the
-- index of what is due has by its whole route. (In JSON neither stands. A column of its own would make each row eight bytes longer,
-- also of what `durable.run` executes itself.) The first index finds what has become due, whatever its slot; the second what is held.
CREATE INDEX {line_index} ON {locks} (split_part(route, E'\n', 1), due_at)
 WHERE strpos(route, E'\n') > 0 AND due_at < 'infinity';
CREATE INDEX {held_index} ON {locks} ((split_part(route, E'\n', 2) COLLATE "C"))
 WHERE owner_token IS NOT NULL AND due_at IS NOT NULL AND strpos(route, E'\n') > 0;

-- `durable_start` takes a partition, too. It is the function that was there with one parameter more, and whoever could execute that
-- can execute this one.
DO $_durable_migration$
DECLARE
    _old record;
    _body text;
    _grant record;
    _named text;
BEGIN
    SELECT proc.oid, proc.prosrc, proc.proacl, proc.proowner, format('%I.%I', namespace.nspname, proc.proname) AS name
      INTO _old
      FROM pg_catalog.pg_class AS class
      JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
      JOIN pg_catalog.pg_proc AS proc ON proc.pronamespace = namespace.oid
     WHERE class.oid = to_regclass({snapshots_text}) AND proc.pronargs = 10
       AND proc.proname = {start_function_text};
    _body := replace(_old.prosrc, $_durable_part$|| ',' || _version::text || ']'$_durable_part$,
        $_durable_part$|| ',' || _version::text || ']' || COALESCE(E'\n[' || to_json(COALESCE($10, ''))::text || ','
                    || to_json(_queue)::text || ',' || to_json($11)::text || ']', '')$_durable_part$);
    _body := regexp_replace(_body, E'\nBEGIN\n', $_durable_part$
BEGIN
    IF $11 = '' OR octet_length($11) > 512 THEN
        RAISE EXCEPTION 'durable: the partition must have 1 to 512 bytes' USING ERRCODE = '22023';
    END IF;
$_durable_part$);
    IF strpos(_body, '$11)::text') = 0 OR strpos(_body, 'octet_length($11)') = 0 THEN
        RAISE EXCEPTION 'durable: the function % is not the one that was created', _old.name;
    END IF;
    EXECUTE format('DROP FUNCTION %s', _old.oid::regprocedure);
    EXECUTE format('CREATE FUNCTION %s(workflow text, input json DEFAULT NULL, id text DEFAULT NULL, queue text DEFAULT ''default'', '
        'priority integer DEFAULT 5, at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, dedup text DEFAULT NULL, '
        'metadata jsonb DEFAULT ''{}'', prefix text DEFAULT '''', partition text DEFAULT NULL) RETURNS text '
        'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS %L', _old.name, _body);
    _named := format('%s(text, json, text, text, integer, timestamptz, interval, text, jsonb, text, text)', _old.name);
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', _named);
    FOR _grant IN
        SELECT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(acl.grantee)) END AS role
          FROM aclexplode(_old.proacl) AS acl
         WHERE acl.privilege_type = 'EXECUTE' AND acl.grantee <> _old.proowner
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', _named, _grant.role);
    END LOOP;
END
$_durable_migration$;
