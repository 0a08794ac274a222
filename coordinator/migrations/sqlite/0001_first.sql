-- State and audit log of one coordinator. Changed by expanding, then contracting; never rewritten.

CREATE TABLE log_entries (
    seq   INTEGER PRIMARY KEY,
    kind  TEXT NOT NULL,
    bytes BLOB NOT NULL,
    leaf  BLOB NOT NULL
) STRICT;
CREATE INDEX log_entries_by_kind ON log_entries (kind, seq);

-- Against accidents, not against administrators: those are what the signed tree is for.
CREATE TRIGGER log_entries_are_not_changed BEFORE UPDATE ON log_entries
BEGIN SELECT RAISE(ABORT, 'log entries are append-only'); END;
CREATE TRIGGER log_entries_are_not_deleted BEFORE DELETE ON log_entries
BEGIN SELECT RAISE(ABORT, 'log entries are append-only'); END;

CREATE TABLE log_checkpoints (
    tree_size INTEGER PRIMARY KEY,
    note      TEXT NOT NULL
) STRICT;

-- Certificates that entries name, by digest.
CREATE TABLE certificates (
    sha256 TEXT PRIMARY KEY,
    der    BLOB NOT NULL
) STRICT;

-- Policy files that were ever in force, by the digest of their set.
CREATE TABLE policies (
    set_sha256 TEXT NOT NULL,
    file       TEXT NOT NULL,
    bytes      BLOB NOT NULL,
    PRIMARY KEY (set_sha256, file)
) STRICT;

CREATE TABLE studies (
    id           TEXT PRIMARY KEY,
    sha256       TEXT NOT NULL,
    yaml         BLOB NOT NULL,
    state        TEXT NOT NULL,
    reason       TEXT,
    submitted_ms INTEGER NOT NULL,
    submitted_by TEXT NOT NULL
) STRICT;

-- One row per try of a round; the newest try of the newest round is the one that runs.
CREATE TABLE rounds (
    study   TEXT NOT NULL REFERENCES studies (id),
    number  INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    version INTEGER NOT NULL,
    state   TEXT NOT NULL,
    PRIMARY KEY (study, number, attempt)
) STRICT;

CREATE TABLE updates (
    study        TEXT NOT NULL REFERENCES studies (id),
    number       INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    site         TEXT NOT NULL,
    header       BLOB NOT NULL,
    signature    BLOB NOT NULL,
    payload      TEXT NOT NULL,
    bytes        INTEGER NOT NULL,
    epsilon      TEXT NOT NULL,
    log_index    INTEGER NOT NULL,
    leaf         BLOB NOT NULL,
    committed_ms INTEGER NOT NULL,
    PRIMARY KEY (study, number, attempt, site)
) STRICT;

CREATE TABLE models (
    study        TEXT NOT NULL REFERENCES studies (id),
    number       INTEGER NOT NULL,
    sha256       TEXT NOT NULL,
    published_ms INTEGER NOT NULL,
    PRIMARY KEY (study, number)
) STRICT;
