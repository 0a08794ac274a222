-- Shards whose contents may be deleted; the log says by which policy (`pruning.begun`). Hashes stay.
CREATE TABLE log_prunings (
    shard BIGINT PRIMARY KEY
);

-- While the function below works, and for the tables that it works on, changes are let through.
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'TRUNCATE' AND TG_TABLE_NAME IN ('log_entries', 'log_personal')
        AND current_setting('falaj.pruning', true) = 'on'
    THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log_prunings
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE log_prunings ENABLE ALWAYS TRIGGER append_only;

-- Deletes the contents of entries from one place to below another, but of those kinds that are kept, and what was indexed
-- under these names. The writer's role may change nothing itself; this does it with the owner's rights, and only in a shard
-- that has ended and whose pruning was begun.
CREATE FUNCTION empty_entries(from_place BIGINT, below_place BIGINT, kept TEXT[], terms TEXT[]) RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER SET search_path = falaj, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM log_prunings p
        JOIN log_shards s ON s.number = p.shard
        JOIN log_shards n ON n.number = p.shard + 1
        WHERE s.first <= from_place AND below_place <= n.first
    ) THEN
        RAISE EXCEPTION 'no pruning of these entries was begun' USING ERRCODE = 'restrict_violation';
    END IF;
    PERFORM set_config('falaj.pruning', 'on', true);
    UPDATE log_entries e SET bytes = ''
    WHERE e.seq >= from_place AND e.seq < below_place AND e.kind COLLATE "C" <> ALL (kept);
    DELETE FROM log_personal p WHERE p.seq >= from_place AND p.seq < below_place;
    PERFORM set_config('falaj.pruning', 'off', true);
    DELETE FROM log_objects o USING log_object_names n
    WHERE n.name = ANY (terms COLLATE "C") AND o.object = n.id AND o.seq >= from_place AND o.seq < below_place;
    DELETE FROM log_object_names n
    WHERE n.name = ANY (terms COLLATE "C") AND NOT EXISTS (SELECT FROM log_objects o WHERE o.object = n.id);
END
$$;
REVOKE ALL ON FUNCTION empty_entries FROM PUBLIC;
