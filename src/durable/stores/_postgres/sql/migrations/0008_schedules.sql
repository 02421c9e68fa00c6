-- What begins runs by itself, as the worker that started last has said: at the moments of a crontab's line in a time zone, or each so
-- many seconds. `start` is what each run is. `due_at` is the next moment; NULL where a worker's poll is to find it out first, from
-- then on. Whoever sets it to the one after, of the same `revision`, begins the run in the same statement. The run of the last moment
-- is `last_id`.
CREATE TABLE {schedules} (
    id       text PRIMARY KEY,
    cron     text,
    zone     text NOT NULL,
    every    float8,
    missed   text NOT NULL,
    overlap  text NOT NULL,
    start    json NOT NULL,
    revision integer NOT NULL DEFAULT 1,
    paused   boolean NOT NULL DEFAULT false,
    due_at   timestamptz,
    last_at  timestamptz,
    last_id  text
) WITH (fillfactor = 50);
