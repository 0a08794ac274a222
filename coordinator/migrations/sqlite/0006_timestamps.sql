-- Time-stamps of others (RFC 3161): what an authority answered when it was asked about a checkpoint, or about a report.
CREATE TABLE log_timestamps (
    imprint      TEXT PRIMARY KEY,
    what         TEXT NOT NULL,
    tree_size    INTEGER NOT NULL,
    authority    TEXT NOT NULL,
    stamped_ms   INTEGER NOT NULL,
    answer       BLOB NOT NULL,
    log_index    INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX log_timestamps_by_size ON log_timestamps (what, tree_size);

CREATE TRIGGER log_timestamps_are_not_changed BEFORE UPDATE ON log_timestamps
BEGIN SELECT RAISE(ABORT, 'time-stamps are append-only'); END;
CREATE TRIGGER log_timestamps_are_not_deleted BEFORE DELETE ON log_timestamps
BEGIN SELECT RAISE(ABORT, 'time-stamps are append-only'); END;
