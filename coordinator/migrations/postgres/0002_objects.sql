-- Which entries touch what: a copy that saves time, and that anybody with the entries can make anew. Nothing was written
-- to a database of this kind before there was this index, so it lacks nothing.
CREATE TABLE log_object_names (
    id   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE log_objects (
    object BIGINT NOT NULL,
    seq    BIGINT NOT NULL,
    PRIMARY KEY (object, seq)
);
