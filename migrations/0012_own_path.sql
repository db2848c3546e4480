-- What other programs can put in our way.

-- Locked by the one pass that reads and applies. It holds no rows: a lock on it is written nowhere, and only who has
-- rights on it can take one.
CREATE TABLE IF NOT EXISTS providerd.applying ();

-- A date at the end of the calendar has nothing before it.
CREATE OR REPLACE FUNCTION providerd.keep_global_rule_newest() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    newest record;
BEGIN
    SELECT max(created_at) FILTER (WHERE created_at BETWEEN '0001-01-01' AND '9999-12-31') AS created,
           max(updated_at) FILTER (WHERE updated_at BETWEEN '0001-01-01' AND '9999-12-31') AS updated INTO newest
        FROM __SCHEMA__.llm_routing_rules WHERE model_id IS NULL;
    IF newest.created IS NOT NULL AND (NEW.created_at IS NULL OR NEW.created_at >= newest.created) THEN
        NEW.created_at := newest.created - interval '1 microsecond';
    END IF;
    IF newest.updated IS NOT NULL AND (NEW.updated_at IS NULL OR NEW.updated_at >= newest.updated) THEN
        NEW.updated_at := newest.updated - interval '1 microsecond';
    END IF;
    RETURN NEW;
END $$;

-- Trigger functions run in the sessions of other programs, with their search_path: operators that lie there would be
-- taken for ours.
DO $$
DECLARE
    target regprocedure;
BEGIN
    FOR target IN SELECT oid FROM pg_catalog.pg_proc
        WHERE pronamespace = 'providerd'::regnamespace AND prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path TO pg_catalog, pg_temp', target);
    END LOOP;
END $$;
