-- Time-stamps of others (RFC 3161): what an authority answered when it was asked about a checkpoint, or about a report.
CREATE TABLE log_timestamps (
    imprint      TEXT COLLATE "C" PRIMARY KEY,
    what         TEXT COLLATE "C" NOT NULL,
    tree_size    BIGINT NOT NULL,
    authority    TEXT NOT NULL,
    stamped_ms   BIGINT NOT NULL,
    answer       BYTEA NOT NULL,
    log_index    BIGINT NOT NULL,
    committed_ms BIGINT NOT NULL
);
CREATE INDEX log_timestamps_by_size ON log_timestamps (what, tree_size);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_timestamps
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE log_timestamps ENABLE ALWAYS TRIGGER append_only;
