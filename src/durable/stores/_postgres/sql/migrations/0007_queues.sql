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
-- where nothing is due of it, or all that it may hold is held.
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
