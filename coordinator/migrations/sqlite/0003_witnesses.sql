-- Hashes of whole tiles of the log: level 1 of 2^8 entries, level 2 of 2^16, and so on. A copy that saves time, made anew
-- from the entries when the coordinator starts.
CREATE TABLE log_tiles (
    level INTEGER NOT NULL,
    n     INTEGER NOT NULL,
    hash  BLOB NOT NULL,
    PRIMARY KEY (level, n)
) STRICT;

-- What witnesses signed: that the checkpoint of this size goes on from all that they had seen before.
CREATE TABLE log_cosignatures (
    tree_size INTEGER NOT NULL,
    witness   TEXT NOT NULL,
    line      TEXT NOT NULL,
    PRIMARY KEY (tree_size, witness)
) STRICT;
CREATE INDEX log_cosignatures_by_witness ON log_cosignatures (witness, tree_size);
