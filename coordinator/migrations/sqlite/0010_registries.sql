-- The versions of each study's model and where they stand; a change replaces the version that it was computed from.
CREATE TABLE registries (
    study   TEXT PRIMARY KEY REFERENCES studies (id),
    version INTEGER NOT NULL,
    state   TEXT NOT NULL
) STRICT;

-- What was signed of each version: a DSSE envelope.
CREATE TABLE provenances (
    study    TEXT NOT NULL REFERENCES studies (id),
    number   INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    PRIMARY KEY (study, number)
) STRICT;
CREATE TRIGGER provenances_are_not_changed BEFORE UPDATE ON provenances
BEGIN SELECT RAISE(ABORT, 'provenances are append-only'); END;
CREATE TRIGGER provenances_are_not_deleted BEFORE DELETE ON provenances
BEGIN SELECT RAISE(ABORT, 'provenances are append-only'); END;
