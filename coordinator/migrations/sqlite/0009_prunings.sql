-- Shards whose contents may be deleted, each with the shard; the log says by which policy (`pruning.begun`). Hashes stay.
CREATE TABLE log_prunings (
    shard INTEGER PRIMARY KEY
) STRICT;
CREATE TRIGGER log_prunings_are_not_changed BEFORE UPDATE ON log_prunings
BEGIN SELECT RAISE(ABORT, 'prunings are append-only'); END;
CREATE TRIGGER log_prunings_are_not_deleted BEFORE DELETE ON log_prunings
BEGIN SELECT RAISE(ABORT, 'prunings are append-only'); END;

-- Where such a shard lies: from `first` to below `below`.
CREATE VIEW log_pruned AS
SELECT s.first AS first, n.first AS below
FROM log_prunings p JOIN log_shards s ON s.number = p.shard JOIN log_shards n ON n.number = p.shard + 1;

DROP TRIGGER log_entries_are_not_changed;
CREATE TRIGGER log_entries_are_not_changed BEFORE UPDATE ON log_entries
WHEN NOT (
    NEW.bytes = x'' AND NEW.seq = OLD.seq AND NEW.kind = OLD.kind AND NEW.leaf = OLD.leaf
    AND EXISTS (SELECT 1 FROM log_pruned WHERE OLD.seq >= first AND OLD.seq < below)
)
BEGIN SELECT RAISE(ABORT, 'log entries are append-only'); END;
DROP TRIGGER log_personal_is_not_deleted;
CREATE TRIGGER log_personal_is_not_deleted BEFORE DELETE ON log_personal
WHEN NOT EXISTS (SELECT 1 FROM log_pruned WHERE OLD.seq >= first AND OLD.seq < below)
BEGIN SELECT RAISE(ABORT, 'log_personal is append-only'); END;
