-- The logs that lie here one after the other: `first` is where entry 0 of a shard lies among all entries. Checkpoints and
-- cosignatures lie under the place where they end; tiles of shard n under the levels from 8 n on.
CREATE TABLE log_shards (
    number BIGINT PRIMARY KEY,
    origin TEXT COLLATE "C" NOT NULL UNIQUE,
    first  BIGINT NOT NULL
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_shards
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE log_shards ENABLE ALWAYS TRIGGER append_only;
