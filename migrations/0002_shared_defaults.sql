-- What programs rely on that name only the columns they know: ids and time stamps by default, unique names,
-- columns of two generations that hold the same, and the indexes that readers need.

DO $$
DECLARE
    spot record;
    twins text;
BEGIN
    -- A default where an older table has none; an existing default stays.
    FOR spot IN
        SELECT c.table_name, c.column_name FROM information_schema.columns c
        WHERE c.table_schema = {schema_text} AND c.column_name = 'id' AND c.column_default IS NULL
          AND c.table_name IN ('llm_providers', 'llm_models', 'llm_routing_rules', 'llm_usage_logs')
          AND c.data_type = 'uuid'
    LOOP
        EXECUTE format('ALTER TABLE {schema}.%I ALTER COLUMN id SET DEFAULT gen_random_uuid()', spot.table_name);
    END LOOP;

    -- Manifests name providers by name alone.
    SELECT string_agg(quote_literal(name), ', ' ORDER BY name) INTO twins
    FROM (SELECT name FROM {schema}.llm_providers GROUP BY name HAVING count(*) > 1) q;
    IF twins IS NOT NULL THEN
        RAISE EXCEPTION 'several rows of llm_providers share a name: %', twins
            USING ERRCODE = 'unique_violation', HINT = 'rename or remove all but one of each; nothing was changed';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_index i
        WHERE i.indrelid = '{schema}.llm_providers'::regclass AND i.indisunique AND i.indpred IS NULL AND i.indnkeyatts = 1
          AND i.indkey[0] = (SELECT attnum FROM pg_attribute
                             WHERE attrelid = '{schema}.llm_providers'::regclass AND attname = 'name')
    ) THEN
        CREATE UNIQUE INDEX llm_providers_name_key ON {schema}.llm_providers (name);
    END IF;

    -- Older installations may hold one model twice; there, the index has to wait for a person.
    IF NOT EXISTS (
        SELECT 1 FROM pg_index i
        WHERE i.indrelid = '{schema}.llm_models'::regclass AND i.indisunique AND i.indpred IS NULL AND i.indnkeyatts = 2
          AND (SELECT array_agg(attname ORDER BY attname) FROM pg_attribute
               WHERE attrelid = i.indrelid AND attnum = ANY (i.indkey::int[])) = ARRAY['name', 'provider_id']::name[]
    ) AND NOT EXISTS (SELECT 1 FROM {schema}.llm_models GROUP BY provider_id, name HAVING count(*) > 1) THEN
        CREATE UNIQUE INDEX llm_models_provider_id_name_key ON {schema}.llm_models (provider_id, name);
    END IF;
END $$;

-- The columns that this migration's predecessor added beside older ones.
UPDATE {schema}.llm_models SET model_name = name WHERE model_name IS NULL;
UPDATE {schema}.llm_providers SET encrypted_api_key = api_key_encrypted
WHERE encrypted_api_key IS NULL AND api_key_encrypted <> '';
UPDATE {schema}.llm_providers SET api_key_encrypted = encrypted_api_key
WHERE coalesce(api_key_encrypted, '') = '' AND encrypted_api_key <> '';

CREATE INDEX IF NOT EXISTS llm_routing_rules_model_id_idx ON {schema}.llm_routing_rules (model_id);
CREATE INDEX IF NOT EXISTS llm_routing_rules_cell_idx ON {schema}.llm_routing_rules (power_level, user_tier);
CREATE INDEX IF NOT EXISTS llm_routing_rules_global_idx ON {schema}.llm_routing_rules (created_at) WHERE model_id IS NULL;
CREATE INDEX IF NOT EXISTS llm_usage_logs_provider_id_idx ON {schema}.llm_usage_logs (provider_id, created_at);
