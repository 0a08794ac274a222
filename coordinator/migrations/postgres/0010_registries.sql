-- The versions of each study's model and where they stand; a change replaces the version that it was computed from.
CREATE TABLE registries (
    study   TEXT COLLATE "C" PRIMARY KEY REFERENCES studies (id),
    version BIGINT NOT NULL,
    state   TEXT NOT NULL
);

-- What was signed of each version: a DSSE envelope.
CREATE TABLE provenances (
    study    TEXT COLLATE "C" NOT NULL REFERENCES studies (id),
    number   BIGINT NOT NULL,
    envelope BYTEA NOT NULL,
    PRIMARY KEY (study, number)
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON provenances
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE provenances ENABLE ALWAYS TRIGGER append_only;
