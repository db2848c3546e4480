-- Programs of different generations share the tables: where two columns mean one thing, whichever a writer sets is
-- copied to the other. The WHEN clauses keep rows that agree already (a bulk load's, or providerd's own) from
-- calling any function. The functions name no table of the schema `providerd`: writers need no right on it.

-- ------------------------------------------------------------------------------------------ model names
CREATE OR REPLACE FUNCTION providerd.keep_model_name() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.name IS DISTINCT FROM OLD.name AND NEW.name IS NOT NULL THEN
        NEW.model_name := NEW.name;
    ELSIF TG_OP = 'UPDATE' AND NEW.model_name IS DISTINCT FROM OLD.model_name AND NEW.model_name IS NOT NULL THEN
        NEW.name := NEW.model_name;
    ELSIF NEW.name IS NULL THEN
        NEW.name := NEW.model_name;
    ELSE
        NEW.model_name := NEW.name;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER providerd_model_name BEFORE INSERT OR UPDATE ON __SCHEMA__.llm_models
    FOR EACH ROW WHEN (NEW.name IS DISTINCT FROM NEW.model_name)
    EXECUTE FUNCTION providerd.keep_model_name();

-- ------------------------------------------------------------------------------------------ key columns
-- NULL and '' both mean "no key", so they do not differ. Where a writer sets both and they differ, the newer
-- generation's column, encrypted_api_key, is believed. A difference that was there before is left as it is:
-- only the BYOK key can tell which of the two opens.
CREATE OR REPLACE FUNCTION providerd.keep_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF coalesce(NEW.encrypted_api_key, '') = '' THEN
            NEW.encrypted_api_key := NEW.api_key_encrypted;
        ELSE
            NEW.api_key_encrypted := NEW.encrypted_api_key;
        END IF;
    ELSIF NEW.encrypted_api_key IS DISTINCT FROM OLD.encrypted_api_key THEN
        NEW.api_key_encrypted := coalesce(NEW.encrypted_api_key, '');
    ELSE
        NEW.encrypted_api_key := coalesce(NEW.api_key_encrypted, '');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER providerd_key_insert BEFORE INSERT ON __SCHEMA__.llm_providers
    FOR EACH ROW WHEN (coalesce(NEW.api_key_encrypted, '') <> coalesce(NEW.encrypted_api_key, ''))
    EXECUTE FUNCTION providerd.keep_key();
CREATE TRIGGER providerd_key_update BEFORE UPDATE ON __SCHEMA__.llm_providers
    FOR EACH ROW WHEN (coalesce(NEW.api_key_encrypted, '') <> coalesce(NEW.encrypted_api_key, '')
                       AND (NEW.api_key_encrypted IS DISTINCT FROM OLD.api_key_encrypted
                            OR NEW.encrypted_api_key IS DISTINCT FROM OLD.encrypted_api_key))
    EXECUTE FUNCTION providerd.keep_key();

-- Programs written for a nullable column say NULL for "no key"; a column that forbids NULL holds '' instead.
CREATE OR REPLACE FUNCTION providerd.keep_key_not_null() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.api_key_encrypted := '';
    RETURN NEW;
END $$;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = $name$__SCHEMA__.llm_providers$name$::regclass
               AND attname = 'api_key_encrypted' AND attnotnull) THEN
        CREATE TRIGGER providerd_key_zero BEFORE INSERT OR UPDATE ON __SCHEMA__.llm_providers
            FOR EACH ROW WHEN (NEW.api_key_encrypted IS NULL)
            EXECUTE FUNCTION providerd.keep_key_not_null();
    END IF;
END $$;

-- ------------------------------------------------------------------------------------------ usage counters
-- Only the columns that this installation has are named, so the function is made here.
DO $$
DECLARE
    pair text[];
    body text := '';
BEGIN
    FOREACH pair SLICE 1 IN ARRAY ARRAY[
        ['prompt_tokens', 'input_tokens'], ['prompt_tokens', 'request_tokens'],
        ['completion_tokens', 'output_tokens'], ['completion_tokens', 'response_tokens'],
        ['cost_total_usd', 'cost']]
    LOOP
        IF providerd.has_column($name$__SCHEMA__.llm_usage_logs$name$, pair[2]) THEN
            body := body || format($line$
    IF TG_OP = 'UPDATE' AND NEW.%2$I IS DISTINCT FROM OLD.%2$I AND NEW.%1$I IS NOT DISTINCT FROM OLD.%1$I THEN
        NEW.%1$I := NEW.%2$I;
    ELSIF NEW.%1$I IS NULL THEN
        NEW.%1$I := NEW.%2$I;
    ELSIF coalesce(NEW.%2$I, 0) = 0 OR TG_OP = 'UPDATE' AND NEW.%1$I IS DISTINCT FROM OLD.%1$I THEN
        NEW.%2$I := NEW.%1$I;
    END IF;$line$, pair[1], pair[2]);
        END IF;
    END LOOP;
    IF body <> '' THEN
        EXECUTE 'CREATE OR REPLACE FUNCTION providerd.keep_usage() RETURNS trigger LANGUAGE plpgsql AS $keep$ BEGIN'
            || body || ' RETURN NEW; END $keep$';
        CREATE TRIGGER providerd_usage BEFORE INSERT OR UPDATE ON __SCHEMA__.llm_usage_logs
            FOR EACH ROW EXECUTE FUNCTION providerd.keep_usage();
    END IF;
END $$;

-- ------------------------------------------------------------------------------------------ the global strategy row
-- Programs of an older generation read the newest row of llm_routing_rules and take it for the global strategy: a
-- model's rule is dated just before it. Where no global row exists this is one look into an empty partial index.
CREATE OR REPLACE FUNCTION providerd.keep_global_rule_newest() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    newest record;
BEGIN
    SELECT max(created_at) AS created, max(updated_at) AS updated INTO newest
        FROM __SCHEMA__.llm_routing_rules WHERE model_id IS NULL;
    IF newest.created IS NOT NULL AND (NEW.created_at IS NULL OR NEW.created_at >= newest.created) THEN
        NEW.created_at := newest.created - interval '1 microsecond';
    END IF;
    IF newest.updated IS NOT NULL AND (NEW.updated_at IS NULL OR NEW.updated_at >= newest.updated) THEN
        NEW.updated_at := newest.updated - interval '1 microsecond';
    END IF;
    RETURN NEW;
END $$;
-- Triggers of one kind fire in the order of their names: after anybody's `updated_at` trigger.
-- providerd dates the rules that it inserts by itself.
CREATE TRIGGER zz_providerd_global_insert BEFORE INSERT ON __SCHEMA__.llm_routing_rules
    FOR EACH ROW WHEN (NEW.model_id IS NOT NULL AND current_setting('providerd.applying', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION providerd.keep_global_rule_newest();
CREATE TRIGGER zz_providerd_global_update BEFORE UPDATE ON __SCHEMA__.llm_routing_rules
    FOR EACH ROW WHEN (NEW.model_id IS NOT NULL)
    EXECUTE FUNCTION providerd.keep_global_rule_newest();

-- ------------------------------------------------------------------------------------------ drift
-- A hint to look again; it carries no data. Status columns are not named: a health check is no drift.
CREATE OR REPLACE FUNCTION providerd.notify_drift() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('providerd_drift', TG_TABLE_NAME);
    RETURN NULL;
END $$;
CREATE TRIGGER providerd_drift AFTER INSERT OR DELETE OR TRUNCATE
    OR UPDATE OF id, name, type, api_key_encrypted, encrypted_api_key, api_key_source, api_base_url, enabled, priority, config
    ON __SCHEMA__.llm_providers FOR EACH STATEMENT
    WHEN (current_setting('providerd.applying', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION providerd.notify_drift();
CREATE TRIGGER providerd_drift AFTER INSERT OR DELETE OR TRUNCATE
    OR UPDATE OF id, provider_id, name, model_name, display_name, context_length, cost_per_1m_tokens,
       cost_per_1m_input_tokens, cost_per_1m_output_tokens, enabled, metadata
    ON __SCHEMA__.llm_models FOR EACH STATEMENT
    WHEN (current_setting('providerd.applying', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION providerd.notify_drift();
CREATE TRIGGER providerd_drift AFTER INSERT OR DELETE OR TRUNCATE
    OR UPDATE OF id, model_id, power_level, user_tier, task_type, priority, weight, is_active
    ON __SCHEMA__.llm_routing_rules FOR EACH STATEMENT
    WHEN (current_setting('providerd.applying', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION providerd.notify_drift();

DROP FUNCTION providerd.has_column(regclass, text);
