-- State and audit log of one coordinator, in a schema of its own. Changed by expanding, then contracting; never rewritten.
-- Text sorts by its bytes: another version of the system's collations must not change an order or an index.

CREATE TABLE log_entries (
    seq   BIGINT PRIMARY KEY,
    kind  TEXT COLLATE "C" NOT NULL,
    bytes BYTEA NOT NULL,
    leaf  BYTEA NOT NULL
);
CREATE INDEX log_entries_by_kind ON log_entries (kind, seq);

CREATE TABLE log_checkpoints (
    tree_size BIGINT PRIMARY KEY,
    note      TEXT NOT NULL
);

-- What witnesses signed: that the checkpoint of this size goes on from all that they had seen before.
CREATE TABLE log_cosignatures (
    tree_size BIGINT NOT NULL,
    witness   TEXT COLLATE "C" NOT NULL,
    line      TEXT NOT NULL,
    PRIMARY KEY (tree_size, witness)
);
CREATE INDEX log_cosignatures_by_witness ON log_cosignatures (witness, tree_size);

-- Hashes of whole tiles of the log. A copy that saves time, made anew from the entries when the coordinator starts.
CREATE TABLE log_tiles (
    level BIGINT NOT NULL,
    n     BIGINT NOT NULL,
    hash  BYTEA NOT NULL,
    PRIMARY KEY (level, n)
);

-- Certificates that entries name, by digest.
CREATE TABLE certificates (
    sha256 TEXT COLLATE "C" PRIMARY KEY,
    der    BYTEA NOT NULL
);

-- Policy files that were ever in force, by the digest of their set.
CREATE TABLE policies (
    set_sha256 TEXT COLLATE "C" NOT NULL,
    file       TEXT COLLATE "C" NOT NULL,
    bytes      BYTEA NOT NULL,
    PRIMARY KEY (set_sha256, file)
);

CREATE TABLE studies (
    id           TEXT COLLATE "C" PRIMARY KEY,
    sha256       TEXT NOT NULL,
    yaml         BYTEA NOT NULL,
    state        TEXT NOT NULL,
    reason       TEXT,
    submitted_ms BIGINT NOT NULL,
    submitted_by TEXT NOT NULL
);

-- One row per try of a round; the newest try of the newest round is the one that runs.
CREATE TABLE rounds (
    study   TEXT COLLATE "C" NOT NULL REFERENCES studies (id),
    number  BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    version BIGINT NOT NULL,
    state   TEXT NOT NULL,
    PRIMARY KEY (study, number, attempt)
);

-- Masked rounds: what sites sent in each phase, and the certificates by which they are members.
CREATE TABLE exchanges (
    study    TEXT COLLATE "C" NOT NULL,
    number   BIGINT NOT NULL,
    attempt  BIGINT NOT NULL,
    phase    TEXT COLLATE "C" NOT NULL,
    site     TEXT COLLATE "C" NOT NULL,
    messages BYTEA NOT NULL,
    arrival  BIGINT GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (study, number, attempt, phase, site)
);

CREATE TABLE updates (
    study        TEXT COLLATE "C" NOT NULL REFERENCES studies (id),
    number       BIGINT NOT NULL,
    attempt      BIGINT NOT NULL,
    site         TEXT COLLATE "C" NOT NULL,
    header       BYTEA NOT NULL,
    signature    BYTEA NOT NULL,
    payload      TEXT NOT NULL,
    bytes        BIGINT NOT NULL,
    epsilon      TEXT NOT NULL,
    log_index    BIGINT NOT NULL,
    leaf         BYTEA NOT NULL,
    committed_ms BIGINT NOT NULL,
    PRIMARY KEY (study, number, attempt, site)
);
-- For each site's newest update, when it connects.
CREATE INDEX updates_by_site ON updates (site, log_index);

CREATE TABLE models (
    study        TEXT COLLATE "C" NOT NULL REFERENCES studies (id),
    number       BIGINT NOT NULL,
    sha256       TEXT NOT NULL,
    published_ms BIGINT NOT NULL,
    PRIMARY KEY (study, number)
);

-- The mark of the newest transaction, set by each over the one before: by it a coordinator whose connection broke sees
-- whether its commit is there, and that nobody else wrote meanwhile.
CREATE TABLE writer (
    one  BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    mark BYTEA NOT NULL
);
INSERT INTO writer (mark) VALUES ('');

-- Against accidents, not against administrators: those are what the signed tree is for. The triggers hold for the
-- owner too, for statements that would change no row, and while a session replays another's changes.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['log_entries', 'log_checkpoints', 'log_cosignatures', 'certificates', 'policies', 'updates', 'models']
    LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', name);
    END LOOP;
END
$$;
