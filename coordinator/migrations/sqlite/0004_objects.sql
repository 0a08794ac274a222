-- Which entries touch what: a copy that saves time, and that anybody with the entries can make anew.
CREATE TABLE log_object_names (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE log_objects (
    object INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (object, seq)
) STRICT, WITHOUT ROWID;

-- Entries that were written before there was an index and are not in it yet; the coordinator puts them there when it starts.
CREATE TABLE log_objects_lack (
    first INTEGER NOT NULL,
    below INTEGER NOT NULL
) STRICT;
INSERT INTO log_objects_lack SELECT 0, coalesce(max(seq) + 1, 0) FROM log_entries;
