-- Two generations of programs write these tables. Columns that mean the same hold the same, whichever of them
-- a writer sets; a trigger's WHEN keeps the common case free of any procedural code.

CREATE FUNCTION providerd.model_names() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.name IS NULL THEN
        NEW.name := NEW.model_name;
    ELSIF NEW.model_name IS NULL OR TG_OP = 'INSERT' OR NEW.name IS DISTINCT FROM OLD.name THEN
        NEW.model_name := NEW.name;
    ELSE
        NEW.name := NEW.model_name;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER providerd_model_names BEFORE INSERT OR UPDATE ON {schema}.llm_models
    FOR EACH ROW WHEN (NEW.name IS DISTINCT FROM NEW.model_name) EXECUTE FUNCTION providerd.model_names();

CREATE FUNCTION providerd.provider_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF coalesce(NEW.api_key_encrypted, '') <> '' OR NEW.encrypted_api_key IS NULL THEN
            NEW.encrypted_api_key := NEW.api_key_encrypted;
        ELSE
            NEW.api_key_encrypted := NEW.encrypted_api_key;
        END IF;
    ELSIF NEW.api_key_encrypted IS DISTINCT FROM OLD.api_key_encrypted
        OR NEW.encrypted_api_key IS NOT DISTINCT FROM OLD.encrypted_api_key THEN
        NEW.encrypted_api_key := NEW.api_key_encrypted;
    ELSE
        NEW.api_key_encrypted := coalesce(NEW.encrypted_api_key, '');
        NEW.encrypted_api_key := NEW.api_key_encrypted;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER providerd_keys_1 BEFORE INSERT OR UPDATE ON {schema}.llm_providers
    FOR EACH ROW WHEN (NEW.api_key_encrypted IS DISTINCT FROM NEW.encrypted_api_key)
    EXECUTE FUNCTION providerd.provider_keys();

-- `pending` follows every change of a key, unless its writer says otherwise.
CREATE FUNCTION providerd.key_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('providerd.applying', true) IS DISTINCT FROM 'on'
        AND NEW.api_key_test_status IS NOT DISTINCT FROM OLD.api_key_test_status THEN
        NEW.api_key_test_status := CASE WHEN coalesce(NEW.api_key_encrypted, '') = '' THEN NULL ELSE 'pending' END;
        NEW.api_key_updated_at := now() AT TIME ZONE 'utc';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER providerd_keys_2 BEFORE UPDATE ON {schema}.llm_providers
    FOR EACH ROW WHEN (NEW.api_key_encrypted IS DISTINCT FROM OLD.api_key_encrypted)
    EXECUTE FUNCTION providerd.key_changed();

-- Readers of older installations take the newest row for the one global strategy: rules of models stay older.
CREATE FUNCTION providerd.rule_times() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    oldest timestamp;
BEGIN
    SELECT min(created_at) INTO oldest FROM {schema}.llm_routing_rules WHERE model_id IS NULL;
    IF oldest IS NOT NULL THEN
        NEW.created_at := least(NEW.created_at, oldest - interval '1 microsecond');
        SELECT min(updated_at) INTO oldest FROM {schema}.llm_routing_rules WHERE model_id IS NULL;
        NEW.updated_at := least(NEW.updated_at, oldest - interval '1 microsecond');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER providerd_rule_times BEFORE INSERT OR UPDATE ON {schema}.llm_routing_rules
    FOR EACH ROW WHEN (NEW.model_id IS NOT NULL) EXECUTE FUNCTION providerd.rule_times();

-- Token counts and costs under the names of both generations, where a table has both.
DO $$
DECLARE
    pairs text[][] := ARRAY[['prompt_tokens', 'input_tokens'], ['prompt_tokens', 'request_tokens'],
                            ['completion_tokens', 'output_tokens'], ['completion_tokens', 'response_tokens'],
                            ['cost_total_usd', 'cost']];
    body text := '';
    i int;
BEGIN
    FOR i IN 1 .. array_length(pairs, 1) LOOP
        IF EXISTS (SELECT 1 FROM information_schema.columns
                   WHERE table_schema = {schema_text} AND table_name = 'llm_usage_logs' AND column_name = pairs[i][2]) THEN
            body := body || format('NEW.%1$I := coalesce(NEW.%1$I, NEW.%2$I); NEW.%2$I := coalesce(NEW.%2$I, NEW.%1$I); ',
                                   pairs[i][1], pairs[i][2]);
            EXECUTE format('UPDATE {schema}.llm_usage_logs SET %1$I = %2$I WHERE %1$I IS NULL AND %2$I IS NOT NULL',
                           pairs[i][1], pairs[i][2]);
        END IF;
    END LOOP;
    IF body <> '' THEN
        EXECUTE 'CREATE FUNCTION providerd.usage_names() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN '
            || body || 'RETURN NEW; END $f$';
        EXECUTE 'CREATE TRIGGER providerd_usage_names BEFORE INSERT ON {schema}.llm_usage_logs '
            || 'FOR EACH ROW EXECUTE FUNCTION providerd.usage_names()';
    END IF;
END $$;

-- Tells the daemon that somebody else wrote; status updates are not listed, and its own writes are silent.
CREATE FUNCTION providerd.drifted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('providerd.applying', true) IS DISTINCT FROM 'on' THEN
        PERFORM pg_notify('providerd_drift', TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER providerd_drift AFTER INSERT OR DELETE
    OR UPDATE OF name, type, api_key_encrypted, encrypted_api_key, api_key_source, api_base_url, enabled, priority, config
    ON {schema}.llm_providers FOR EACH STATEMENT EXECUTE FUNCTION providerd.drifted();
CREATE TRIGGER providerd_drift AFTER INSERT OR DELETE
    OR UPDATE OF provider_id, name, model_name, display_name, context_length, cost_per_1m_tokens, cost_per_1m_input_tokens,
                 cost_per_1m_output_tokens, enabled, metadata
    ON {schema}.llm_models FOR EACH STATEMENT EXECUTE FUNCTION providerd.drifted();
CREATE TRIGGER providerd_drift AFTER INSERT OR DELETE OR UPDATE
    ON {schema}.llm_routing_rules FOR EACH STATEMENT EXECUTE FUNCTION providerd.drifted();
