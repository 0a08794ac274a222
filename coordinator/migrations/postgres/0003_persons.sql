-- What entries commit to about people: salt and payload, sealed under a key that lies in a file of its own and never in
-- this database. Without that file nobody can open a row, here or in any copy of it.
CREATE TABLE log_personal (
    seq    BIGINT PRIMARY KEY,
    person TEXT COLLATE "C" NOT NULL,
    sealed BYTEA NOT NULL
);

-- Certificates of people, sealed likewise. The tag keeps one from being put here twice; it is made with the same key.
CREATE TABLE personal_certificates (
    person TEXT COLLATE "C" NOT NULL,
    tag    TEXT COLLATE "C" NOT NULL,
    sealed BYTEA NOT NULL,
    PRIMARY KEY (person, tag)
);

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['log_personal', 'personal_certificates']
    LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', name);
    END LOOP;
END
$$;
