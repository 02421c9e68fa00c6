-- Starts and signals for SQL, triggers and other languages, in the transaction that calls them. They write as the owner of the
-- tables, with the right to write any text there; so no role may execute them before a GRANT EXECUTE ... TO role. Whatever the
-- search path of a caller, or of its role, they use PostgreSQL's own functions and these very tables. Of a run that is there
-- already, or whose `dedup` another one has that has not ended, the id is that one's, as for `durable.start`. An input is kept
-- as it is given, without a hash (`unhashed`): what it would be is the codec's to say.
DO $_durable_migration$
DECLARE
    _home text := (SELECT format('%I', namespace.nspname)
                     FROM pg_catalog.pg_class AS class
                     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
                    WHERE class.oid = to_regclass({snapshots_text}));
    _script text := $_durable_script$

CREATE FUNCTION @_durable_home@.{start_function}(
    workflow text, input json DEFAULT NULL, id text DEFAULT NULL, queue text DEFAULT 'default', priority integer DEFAULT 5,
    at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, dedup text DEFAULT NULL, metadata jsonb DEFAULT '{}',
    prefix text DEFAULT ''
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $_durable_body$
#variable_conflict use_column
DECLARE
    _workflow text := regexp_replace($1, '@[0-9]+$', '');
    _version numeric := COALESCE((regexp_match($1, '@([0-9]+)$'))[1]::numeric, 1);
    _input json := $2;
    _id text := COALESCE($3, md5(random()::text || random()::text || clock_timestamp()::text || pg_backend_pid()::text));
    _row text := COALESCE($10, '') || _id;
    _queue text := COALESCE($4, 'default');
    _dedup jsonb := CASE WHEN $8 IS NOT NULL THEN jsonb_build_array(COALESCE($10, ''), _queue, $8) END;
    _metadata jsonb := COALESCE($9, '{}');
    _too_great jsonpath := '$.** ? (@.type() == "number" && (@ >= 1.797693134862315808e308 || @ <= -1.797693134862315808e308))';
    _header jsonb;
    _due timestamptz;
    _found record;
BEGIN
    IF COALESCE(_workflow, '') = '' OR octet_length(_workflow) > 512 THEN
        RAISE EXCEPTION 'durable: the name of the workflow must have 1 to 512 bytes' USING ERRCODE = '22023';
    END IF;
    IF _version > 2147483647 THEN
        RAISE EXCEPTION 'durable: the version after the @ must be a number of at most 31 bits' USING ERRCODE = '22023';
    END IF;
    IF _id = '' OR octet_length(_row) > 512 THEN
        RAISE EXCEPTION 'durable: the id must have 1 to 512 bytes' USING ERRCODE = '22023';
    END IF;
    IF _queue = '' OR octet_length(_queue) > 512 OR $8 = '' OR octet_length($8) > 512 THEN
        RAISE EXCEPTION 'durable: queue and dedup must have 1 to 512 bytes' USING ERRCODE = '22023';
    END IF;
    IF $5 IS NULL OR $5 NOT BETWEEN 0 AND 9 THEN
        RAISE EXCEPTION 'durable: the priority must be from 0, the most urgent, to 9' USING ERRCODE = '22023';
    END IF;
    IF $6 IS NOT NULL AND $7 IS NOT NULL THEN
        RAISE EXCEPTION 'durable: at and delay both say when the run is due: give one of them' USING ERRCODE = '22023';
    END IF;
    _due := COALESCE($6, clock_timestamp() + COALESCE($7, interval '0'));
    IF $7 < interval '0' OR _due < timestamptz '0001-01-02 00:00:00+00' OR _due > clock_timestamp() + interval '100 years' THEN
        RAISE EXCEPTION 'durable: the run would not be due within a hundred years, or before it is started' USING ERRCODE = '22023';
    END IF;
    IF jsonb_typeof(_metadata) <> 'object' OR _metadata ?| ARRAY[
           'version', 'inputHash', 'workflowFunction', 'deadline', 'stepOrder', 'stepArgs', 'lastStepKey'] THEN
        RAISE EXCEPTION 'durable: the metadata must be an object, without the keys that are the library''s own, or another tool''s' USING ERRCODE = '22023';
    END IF;
    IF strpos(_input::jsonb::text, '"$type": ') > 0 OR strpos(_metadata::text, '"$type": ') > 0 THEN
        RAISE EXCEPTION 'durable: JSON with a key $type would be read as a value of that type' USING ERRCODE = '22023';
    END IF;
    IF jsonb_path_exists(_input::jsonb, '$.**{200}') OR jsonb_path_exists(_metadata, '$.**{200}') THEN
        RAISE EXCEPTION 'durable: JSON of more than 200 levels cannot be read' USING ERRCODE = '22023';
    END IF;
    IF jsonb_path_exists(_input::jsonb, _too_great) OR jsonb_path_exists(_metadata, _too_great) THEN
        RAISE EXCEPTION 'durable: a number is too great to be read' USING ERRCODE = '22023';
    END IF;
    _metadata := _metadata || jsonb_build_object('version', _version);
    _header := jsonb_build_object(
        'formatVersion', 1, 'workflowName', _workflow, 'steps', jsonb_build_object(),
        'execution', jsonb_build_object('status', 'queued', 'lastUpdated', now()),
        'metadata', CASE WHEN _input IS NULL THEN _metadata ELSE _metadata || jsonb_build_object('inputHash', 'unhashed') END);
    IF _dedup IS NOT NULL THEN
        _header := _header || jsonb_build_object('dedup', _dedup);
    END IF;
    FOR _try IN 1..3 LOOP
        SELECT run.id, run.snapshot->>'workflowName' AS workflow,
               (SELECT record FROM @_durable_steps@ WHERE workflow_id = run.id AND seq = 0 AND kind = 'input') AS input
          INTO _found
          FROM @_durable_snapshots@ AS run
         WHERE run.id = _row;
        IF FOUND THEN
            IF _found.workflow IS DISTINCT FROM _workflow THEN
                RAISE EXCEPTION 'durable: the run "%" is of the workflow "%"', _id, _found.workflow USING ERRCODE = '23505';
            END IF;
            IF _found.input::jsonb IS DISTINCT FROM _input::jsonb THEN
                RAISE EXCEPTION 'durable: the run "%" has another input', _id USING ERRCODE = '23505';
            END IF;
            RETURN _id;
        END IF;
        SELECT run.id INTO _found
          FROM @_durable_snapshots@ AS run
         WHERE run.snapshot->'dedup' = _dedup AND run.snapshot->'dedup' IS NOT NULL
           AND run.snapshot->'execution'->>'status' IN ('queued', 'running');
        IF FOUND THEN
            RETURN substr(_found.id, length(COALESCE($10, '')) + 1);
        END IF;
        EXIT WHEN EXISTS (SELECT FROM @_durable_steps@ WHERE workflow_id = _row);
        IF _dedup IS NOT NULL THEN
            INSERT INTO @_durable_snapshots@ (id, snapshot, updated_at) VALUES (_row, _header, now()) ON CONFLICT DO NOTHING;
            CONTINUE WHEN NOT FOUND;
        END IF;
        INSERT INTO @_durable_locks@ (workflow_id, epoch, expires_at, route, priority, due_at)
        VALUES (_row, 0, clock_timestamp(),
                '[' || to_json(COALESCE($10, ''))::text || ',' || to_json(_queue)::text || ',' || to_json(_workflow)::text
                    || ',' || _version::text || ']',
                $5, _due)
        ON CONFLICT (workflow_id) DO NOTHING;
        IF NOT FOUND AND _dedup IS NOT NULL THEN
            RAISE EXCEPTION 'durable: the run "%" is being begun elsewhere', _id USING ERRCODE = '40001';
        END IF;
        CONTINUE WHEN NOT FOUND;
        IF _dedup IS NULL THEN
            INSERT INTO @_durable_snapshots@ (id, snapshot, updated_at) VALUES (_row, _header, now());
        END IF;
        IF _input IS NOT NULL THEN
            INSERT INTO @_durable_steps@ (workflow_id, seq, key, kind, nonce, epoch, record)
            VALUES (_row, 0, 'input', 'input', 0, 0, _input);
        END IF;
        RETURN _id;
    END LOOP;
    RAISE EXCEPTION 'durable: a part of the run "%" is there, and not the whole', _id USING ERRCODE = '23505';
END
$_durable_body$;

CREATE FUNCTION @_durable_home@.{signal_function}(
    id text, name text, payload json DEFAULT 'null', dedup text DEFAULT NULL, create_later boolean DEFAULT false,
    prefix text DEFAULT ''
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $_durable_body$
#variable_conflict use_column
DECLARE
    _row text := COALESCE($6, '') || $1;
    _is_there boolean := EXISTS (SELECT FROM @_durable_snapshots@ WHERE id = COALESCE($6, '') || $1);
    _nonce bigint;
BEGIN
    IF COALESCE($1, '') = '' OR octet_length(_row) > 512 OR COALESCE($2, '') = '' OR octet_length($2) > 512
       OR $4 = '' OR octet_length($4) > 512 THEN
        RAISE EXCEPTION 'durable: id, name and dedup must have 1 to 512 bytes' USING ERRCODE = '22023';
    END IF;
    IF starts_with($2, 'durable:') THEN
        RAISE EXCEPTION 'durable: names that begin with durable: are of signals of its own' USING ERRCODE = '22023';
    END IF;
    IF strpos($3::jsonb::text, '"$type": ') > 0 THEN
        RAISE EXCEPTION 'durable: JSON with a key $type would be read as a value of that type' USING ERRCODE = '22023';
    END IF;
    IF jsonb_path_exists($3::jsonb, '$.**{200}') THEN
        RAISE EXCEPTION 'durable: JSON of more than 200 levels cannot be read' USING ERRCODE = '22023';
    END IF;
    IF jsonb_path_exists($3::jsonb,
           '$.** ? (@.type() == "number" && (@ >= 1.797693134862315808e308 || @ <= -1.797693134862315808e308))') THEN
        RAISE EXCEPTION 'durable: a number is too great to be read' USING ERRCODE = '22023';
    END IF;
    IF _is_there OR $5 THEN
        _nonce := ('x' || encode(substr(sha256(convert_to(
            CASE WHEN $4 IS NULL THEN random()::text || random()::text || clock_timestamp()::text || pg_backend_pid()::text
                 ELSE length($2)::text || ':' || $2 || $4 END, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint & 4611686018427387903;
        IF $4 IS NOT NULL THEN  -- as `hash_dedup`
            _nonce := _nonce | 4611686018427387904;
        END IF;
        INSERT INTO @_durable_signals@ (workflow_id, name, payload, nonce)
        VALUES (_row, $2, COALESCE($3, 'null'), _nonce)
        ON CONFLICT (workflow_id, nonce) DO NOTHING;
    END IF;
    RETURN _is_there;
END
$_durable_body$;

REVOKE ALL ON FUNCTION @_durable_home@.{start_function}(text, json, text, text, integer, timestamptz, interval, text, jsonb, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @_durable_home@.{signal_function}(text, text, json, text, boolean, text) FROM PUBLIC;
$_durable_script$;
    _part text;
    _table text;
BEGIN
    FOR _part, _table IN
        SELECT part.name, format('%I.%I', namespace.nspname, class.relname)
          FROM (VALUES ('@_durable_snapshots@', {snapshots_text}), ('@_durable_steps@', {steps_text}), ('@_durable_locks@', {locks_text}),
                       ('@_durable_signals@', {signals_text})) AS part (name, relation)
          JOIN pg_catalog.pg_class AS class ON class.oid = to_regclass(part.relation)
          JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    LOOP
        _script := replace(_script, _part, _table);
    END LOOP;
    EXECUTE replace(_script, '@_durable_home@', _home);
END
$_durable_migration$;
