-- What entries commit to about people: salt and payload, sealed under a key that lies in a file of its own and never in
-- this database. Without that file nobody can open a row, here or in any copy of it.
CREATE TABLE log_personal (
    seq    INTEGER PRIMARY KEY,
    person TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT;
CREATE TRIGGER log_personal_is_not_changed BEFORE UPDATE ON log_personal
BEGIN SELECT RAISE(ABORT, 'log_personal is append-only'); END;
CREATE TRIGGER log_personal_is_not_deleted BEFORE DELETE ON log_personal
BEGIN SELECT RAISE(ABORT, 'log_personal is append-only'); END;

-- Certificates of people, sealed likewise. The tag keeps one from being put here twice; it is made with the same key.
CREATE TABLE personal_certificates (
    person TEXT NOT NULL,
    tag    TEXT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (person, tag)
) STRICT;
