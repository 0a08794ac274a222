-- The logs that lie here one after the other: `first` is where entry 0 of a shard lies among all entries. Checkpoints and
-- cosignatures lie under the place where they end; tiles of shard n under the levels from 8 n on.
CREATE TABLE log_shards (
    number INTEGER PRIMARY KEY,
    origin TEXT NOT NULL UNIQUE,
    first  INTEGER NOT NULL
) STRICT;
CREATE TRIGGER log_shards_are_not_changed BEFORE UPDATE ON log_shards
BEGIN SELECT RAISE(ABORT, 'shards are append-only'); END;
CREATE TRIGGER log_shards_are_not_deleted BEFORE DELETE ON log_shards
BEGIN SELECT RAISE(ABORT, 'shards are append-only'); END;
