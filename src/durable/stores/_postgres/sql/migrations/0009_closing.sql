-- The end of a closing sets records aside, too: what was undone, with all that started after it, and the closing itself. The
-- failure of a run says which; otherwise the view is what it was.
CREATE OR REPLACE VIEW {runs} AS
SELECT run.id,
       (SELECT json_object_agg(part.name, part.content ORDER BY part.place)
          FROM (VALUES
                (1, 'formatVersion', (run.snapshot->'formatVersion')::json),
                (2, 'workflowName', (run.snapshot->'workflowName')::json),
                (3, 'steps', COALESCE(journal.steps, '{}'::json)),
                (4, 'execution', (run.snapshot->'execution')::json),
                (5, 'metadata', (run.snapshot->'metadata')::json),
                (6, 'attempts', journal.attempts),
                (7, 'input', COALESCE(journal.input, (run.snapshot->'input')::json)),
                (8, 'result', COALESCE(journal.result, (run.snapshot->'result')::json)),
                (9, 'failure', CASE
                    WHEN run.snapshot->'execution'->>'status' <> 'completed'
                    THEN COALESCE(journal.failure, (run.snapshot->'failure')::json) END)
               ) AS part (place, name, content)
         WHERE part.content IS NOT NULL) AS snapshot,
       run.updated_at
  FROM {snapshots} AS run
 CROSS JOIN LATERAL (
       SELECT ARRAY(SELECT gone.seq::integer
                      FROM {steps} AS step
                     CROSS JOIN LATERAL json_array_elements_text(step.record->'seqs') AS gone (seq)
                     WHERE step.workflow_id = run.id AND step.kind IN ('aside', 'failure')) AS seqs,
              ARRAY(SELECT gone.key
                      FROM {steps} AS step
                     CROSS JOIN LATERAL json_array_elements_text(step.record->'keys') AS gone (key)
                     WHERE step.workflow_id = run.id AND step.kind IN ('aside', 'failure')) AS keys
       ) AS aside
 CROSS JOIN LATERAL (
       SELECT json_object_agg(latest.key,
                  CASE WHEN latest.record->>'ok' = 'false' AND latest.record->'cause' IS NULL
                       THEN (latest.record::jsonb || jsonb_build_object(
                                'cause', jsonb_build_object(
                                    'type', 'error',
                                    'name', regexp_replace(latest.record->'error'->>'type', '^.*:', ''),
                                    'message', latest.record->'error'->>'message'),
                                'meta', jsonb_build_object('origin', 'throw')))::json
                       ELSE latest.record END
                  ORDER BY latest.place, latest.seq) FILTER (WHERE latest.kind = 'step') AS steps,
              json_object_agg(latest.key, latest.record ORDER BY latest.place, latest.seq)
                  FILTER (WHERE latest.kind = 'attempt') AS attempts,
              (array_agg(latest.record) FILTER (WHERE latest.kind = 'input'))[1] AS input,
              (array_agg(latest.record) FILTER (WHERE latest.kind = 'result'))[1] AS result,
              (array_agg(latest.record) FILTER (WHERE latest.kind = 'failure'))[1] AS failure
         FROM (SELECT DISTINCT ON (replace(every.kind, 'attempt', 'step'), every.key) every.*
                 FROM (SELECT 1 AS place, step.seq, step.kind, step.key,
                              CASE WHEN step.kind IN ('step', 'attempt', 'failure') AND step.record::text ~ '^\s*{\s*"'
                                   THEN (regexp_replace(step.record::text, '}\s*$', ',"at":"')
                                         || to_char(step.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                                         || '","epoch":' || step.epoch || '}')::json
                                   ELSE step.record END AS record
                         FROM {steps} AS step
                        WHERE step.workflow_id = run.id AND step.kind <> 'aside' AND step.seq <> ALL (aside.seqs)
                        UNION ALL
                       SELECT 0, 0, 'step', saved.key, saved.value::json
                         FROM jsonb_each(CASE WHEN jsonb_typeof(run.snapshot->'steps') = 'object'
                                              THEN run.snapshot->'steps' ELSE '{}' END) AS saved
                        UNION ALL
                       SELECT 0, 0, 'attempt', saved.key, saved.value::json
                         FROM jsonb_each(CASE WHEN jsonb_typeof(run.snapshot->'attempts') = 'object'
                                              THEN run.snapshot->'attempts' ELSE '{}' END) AS saved
                        UNION ALL
                       SELECT 0, pair.place::integer, 'step', pair.step->>0, (pair.step->1)::json
                         FROM jsonb_array_elements(CASE WHEN jsonb_typeof(run.snapshot->'steps') = 'array'
                                                        THEN run.snapshot->'steps' ELSE '[]' END)
                              WITH ORDINALITY AS pair (step, place)
                      ) AS every
                WHERE every.place = 1 OR every.key <> ALL (aside.keys)
                ORDER BY replace(every.kind, 'attempt', 'step'), every.key, every.place DESC, every.seq DESC) AS latest
       ) AS journal;
