-- The shared tables. Where they exist already they only gain columns, indexes and defaults for their ids; no
-- column that was there is dropped, renamed, retyped, rewritten, or made stricter or laxer.
-- New columns of existing tables carry no volatile default, so PostgreSQL stores the default once and leaves the
-- rows as they lie.

-- Runs one UPDATE of a column that this migration added, with the table's own triggers held still: an
-- `updated_at` that moved would say that somebody changed the row.
CREATE FUNCTION providerd.fill(target regclass, statement text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    always text[] := ARRAY(SELECT tgname FROM pg_trigger WHERE tgrelid = target AND NOT tgisinternal AND tgenabled = 'A');
    origin text[] := ARRAY(SELECT tgname FROM pg_trigger WHERE tgrelid = target AND NOT tgisinternal AND tgenabled = 'O');
    one text;
BEGIN
    FOREACH one IN ARRAY always || origin LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', target, one);
    END LOOP;
    EXECUTE statement;
    FOREACH one IN ARRAY always LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', target, one);
    END LOOP;
    FOREACH one IN ARRAY origin LOOP
        EXECUTE format('ALTER TABLE %s ENABLE TRIGGER %I', target, one);
    END LOOP;
END $$;

CREATE FUNCTION providerd.has_column(target regclass, wanted text) RETURNS boolean LANGUAGE sql AS $$
    SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = target AND attname = wanted AND NOT attisdropped)
$$;

-- ------------------------------------------------------------------------------------------ llm_providers
CREATE TABLE IF NOT EXISTS __SCHEMA__.llm_providers (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name                varchar(255) NOT NULL UNIQUE,
    type                varchar(50) NOT NULL,
    api_key_encrypted   text NOT NULL DEFAULT '',
    encrypted_api_key   text DEFAULT '',
    api_key_source      varchar(50) DEFAULT 'database',
    api_key_updated_at  timestamp,
    api_key_last_tested timestamp,
    api_key_test_status varchar(50),
    api_base_url        text,
    enabled             boolean DEFAULT true,
    priority            integer DEFAULT 0,
    config              jsonb DEFAULT '{}',
    health_status       varchar(50) DEFAULT 'unknown',
    last_health_check   timestamp,
    created_at          timestamp DEFAULT timezone('utc', now()),
    updated_at          timestamp DEFAULT timezone('utc', now())
);
DO $$
DECLARE
    had_token boolean := providerd.has_column($name$__SCHEMA__.llm_providers$name$, 'encrypted_api_key');
BEGIN
    ALTER TABLE __SCHEMA__.llm_providers
        ADD COLUMN IF NOT EXISTS type                varchar(50),
        ADD COLUMN IF NOT EXISTS api_key_encrypted   text DEFAULT '',
        ADD COLUMN IF NOT EXISTS encrypted_api_key   text,
        ADD COLUMN IF NOT EXISTS api_key_source      varchar(50) DEFAULT 'database',
        ADD COLUMN IF NOT EXISTS api_key_updated_at  timestamp,
        ADD COLUMN IF NOT EXISTS api_key_last_tested timestamp,
        ADD COLUMN IF NOT EXISTS api_key_test_status varchar(50),
        ADD COLUMN IF NOT EXISTS api_base_url        text,
        ADD COLUMN IF NOT EXISTS enabled             boolean DEFAULT true,
        ADD COLUMN IF NOT EXISTS priority            integer DEFAULT 0,
        ADD COLUMN IF NOT EXISTS config              jsonb DEFAULT '{}',
        ADD COLUMN IF NOT EXISTS health_status       varchar(50) DEFAULT 'unknown',
        ADD COLUMN IF NOT EXISTS last_health_check   timestamp,
        ADD COLUMN IF NOT EXISTS created_at          timestamp DEFAULT timezone('utc', now()),
        ADD COLUMN IF NOT EXISTS updated_at          timestamp DEFAULT timezone('utc', now());
    IF NOT had_token AND EXISTS (SELECT FROM __SCHEMA__.llm_providers WHERE api_key_encrypted <> '') THEN
        PERFORM providerd.fill($name$__SCHEMA__.llm_providers$name$,
            $sql$UPDATE __SCHEMA__.llm_providers SET encrypted_api_key = api_key_encrypted WHERE api_key_encrypted <> ''$sql$);
    END IF;
END $$;

-- ------------------------------------------------------------------------------------------ llm_models
CREATE TABLE IF NOT EXISTS __SCHEMA__.llm_models (
    id                        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    provider_id               uuid NOT NULL REFERENCES __SCHEMA__.llm_providers (id) ON DELETE CASCADE,
    name                      varchar(255) NOT NULL,
    model_name                varchar(255) NOT NULL,
    display_name              varchar(255),
    context_length            integer,
    cost_per_1m_tokens        numeric(12, 6),
    cost_per_1m_input_tokens  numeric(12, 6),
    cost_per_1m_output_tokens numeric(12, 6),
    enabled                   boolean DEFAULT true,
    metadata                  jsonb DEFAULT '{}',
    avg_latency_ms            integer,
    created_at                timestamp DEFAULT timezone('utc', now()),
    updated_at                timestamp DEFAULT timezone('utc', now())
);
ALTER TABLE __SCHEMA__.llm_models
    ADD COLUMN IF NOT EXISTS provider_id               uuid REFERENCES __SCHEMA__.llm_providers (id) ON DELETE CASCADE,
    ADD COLUMN IF NOT EXISTS name                      varchar(255),
    ADD COLUMN IF NOT EXISTS model_name                varchar(255),
    ADD COLUMN IF NOT EXISTS display_name              varchar(255),
    ADD COLUMN IF NOT EXISTS context_length            integer,
    ADD COLUMN IF NOT EXISTS cost_per_1m_tokens        numeric(12, 6),
    ADD COLUMN IF NOT EXISTS cost_per_1m_input_tokens  numeric(12, 6),
    ADD COLUMN IF NOT EXISTS cost_per_1m_output_tokens numeric(12, 6),
    ADD COLUMN IF NOT EXISTS enabled                   boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS metadata                  jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS avg_latency_ms            integer,
    ADD COLUMN IF NOT EXISTS created_at                timestamp DEFAULT timezone('utc', now()),
    ADD COLUMN IF NOT EXISTS updated_at                timestamp DEFAULT timezone('utc', now());
DO $$
BEGIN
    IF EXISTS (SELECT FROM __SCHEMA__.llm_models WHERE model_name IS NULL AND name IS NOT NULL) THEN
        PERFORM providerd.fill($name$__SCHEMA__.llm_models$name$,
            $sql$UPDATE __SCHEMA__.llm_models SET model_name = name WHERE model_name IS NULL AND name IS NOT NULL$sql$);
    END IF;
    IF EXISTS (SELECT FROM __SCHEMA__.llm_models WHERE name IS NULL AND model_name IS NOT NULL) THEN
        PERFORM providerd.fill($name$__SCHEMA__.llm_models$name$,
            $sql$UPDATE __SCHEMA__.llm_models SET name = model_name WHERE name IS NULL AND model_name IS NOT NULL$sql$);
    END IF;
END $$;

-- ------------------------------------------------------------------------------------------ llm_routing_rules
CREATE TABLE IF NOT EXISTS __SCHEMA__.llm_routing_rules (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model_id           uuid REFERENCES __SCHEMA__.llm_models (id) ON DELETE CASCADE,
    power_level        varchar(50),
    user_tier          varchar(50),
    task_type          varchar(100),
    priority           integer DEFAULT 100,
    weight             integer DEFAULT 100,
    is_active          boolean DEFAULT true,
    strategy           varchar(50) DEFAULT 'balanced',
    fallback_providers uuid[] DEFAULT '{}',
    model_aliases      jsonb DEFAULT '{}',
    config             jsonb DEFAULT '{}',
    created_at         timestamp DEFAULT timezone('utc', now()),
    updated_at         timestamp DEFAULT timezone('utc', now())
);
ALTER TABLE __SCHEMA__.llm_routing_rules
    ADD COLUMN IF NOT EXISTS model_id           uuid REFERENCES __SCHEMA__.llm_models (id) ON DELETE CASCADE,
    ADD COLUMN IF NOT EXISTS power_level        varchar(50),
    ADD COLUMN IF NOT EXISTS user_tier          varchar(50),
    ADD COLUMN IF NOT EXISTS task_type          varchar(100),
    ADD COLUMN IF NOT EXISTS priority           integer DEFAULT 100,
    ADD COLUMN IF NOT EXISTS weight             integer DEFAULT 100,
    ADD COLUMN IF NOT EXISTS is_active          boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS strategy           varchar(50) DEFAULT 'balanced',
    ADD COLUMN IF NOT EXISTS fallback_providers uuid[] DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS model_aliases      jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS config             jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at         timestamp DEFAULT timezone('utc', now()),
    ADD COLUMN IF NOT EXISTS updated_at         timestamp DEFAULT timezone('utc', now());

-- ------------------------------------------------------------------------------------------ llm_usage_logs
CREATE TABLE IF NOT EXISTS __SCHEMA__.llm_usage_logs (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id           varchar(255),
    provider_id       uuid REFERENCES __SCHEMA__.llm_providers (id) ON DELETE SET NULL,
    model_id          uuid REFERENCES __SCHEMA__.llm_models (id) ON DELETE SET NULL,
    model_name        varchar(255),
    request_id        varchar(255),
    power_level       varchar(50),
    prompt_tokens     integer,
    completion_tokens integer,
    total_tokens      integer,
    cost_input_usd    numeric(14, 8),
    cost_output_usd   numeric(14, 8),
    cost_total_usd    numeric(14, 8),
    latency_ms        integer,
    status_code       integer,
    success           boolean DEFAULT true,
    error_message     text,
    was_fallback      boolean DEFAULT false,
    metadata          jsonb DEFAULT '{}',
    created_at        timestamp DEFAULT timezone('utc', now())
);
ALTER TABLE __SCHEMA__.llm_usage_logs
    ADD COLUMN IF NOT EXISTS user_id           varchar(255),
    ADD COLUMN IF NOT EXISTS provider_id       uuid REFERENCES __SCHEMA__.llm_providers (id) ON DELETE SET NULL,
    ADD COLUMN IF NOT EXISTS model_id          uuid REFERENCES __SCHEMA__.llm_models (id) ON DELETE SET NULL,
    ADD COLUMN IF NOT EXISTS model_name        varchar(255),
    ADD COLUMN IF NOT EXISTS request_id        varchar(255),
    ADD COLUMN IF NOT EXISTS power_level       varchar(50),
    ADD COLUMN IF NOT EXISTS prompt_tokens     integer,
    ADD COLUMN IF NOT EXISTS completion_tokens integer,
    ADD COLUMN IF NOT EXISTS total_tokens      integer,
    ADD COLUMN IF NOT EXISTS cost_input_usd    numeric(14, 8),
    ADD COLUMN IF NOT EXISTS cost_output_usd   numeric(14, 8),
    ADD COLUMN IF NOT EXISTS cost_total_usd    numeric(14, 8),
    ADD COLUMN IF NOT EXISTS latency_ms        integer,
    ADD COLUMN IF NOT EXISTS status_code       integer,
    ADD COLUMN IF NOT EXISTS success           boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS error_message     text,
    ADD COLUMN IF NOT EXISTS was_fallback      boolean DEFAULT false,
    ADD COLUMN IF NOT EXISTS metadata          jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at        timestamp DEFAULT timezone('utc', now());

-- ------------------------------------------------------------------------------------------ indexes, ids
-- An id that has no default gets one: programs insert without naming it.
DO $$
DECLARE
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY[$name$__SCHEMA__.llm_providers$name$, $name$__SCHEMA__.llm_models$name$, $name$__SCHEMA__.llm_routing_rules$name$, $name$__SCHEMA__.llm_usage_logs$name$] LOOP
        IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = target::regclass AND attname = 'id'
                   AND atttypid = 'uuid'::regtype AND NOT atthasdef) THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN id SET DEFAULT gen_random_uuid()', target::regclass);
        END IF;
    END LOOP;

    IF NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = $name$__SCHEMA__.llm_providers$name$::regclass AND i.indisunique
                   AND i.indpred IS NULL AND i.indnkeyatts = 1
                   AND i.indkey[0] = (SELECT attnum FROM pg_attribute
                                      WHERE attrelid = $name$__SCHEMA__.llm_providers$name$::regclass AND attname = 'name')) THEN
        -- Two rows of one name are somebody's data: they stay, and the index is a plain one.
        IF EXISTS (SELECT FROM __SCHEMA__.llm_providers GROUP BY name HAVING count(*) > 1) THEN
            CREATE INDEX IF NOT EXISTS llm_providers_name_providerd ON __SCHEMA__.llm_providers (name);
        ELSE
            CREATE UNIQUE INDEX IF NOT EXISTS llm_providers_name_providerd ON __SCHEMA__.llm_providers (name);
        END IF;
    END IF;

    IF NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = $name$__SCHEMA__.llm_models$name$::regclass AND i.indisunique
                   AND i.indpred IS NULL AND i.indnkeyatts = 2
                   AND i.indkey[0] = (SELECT attnum FROM pg_attribute
                                      WHERE attrelid = $name$__SCHEMA__.llm_models$name$::regclass AND attname = 'provider_id')
                   AND i.indkey[1] = (SELECT attnum FROM pg_attribute
                                      WHERE attrelid = $name$__SCHEMA__.llm_models$name$::regclass AND attname = 'name')) THEN
        -- Two rows of one name under one provider are somebody's data: they stay, and the index is a plain one.
        IF EXISTS (SELECT FROM __SCHEMA__.llm_models GROUP BY provider_id, name HAVING count(*) > 1) THEN
            CREATE INDEX IF NOT EXISTS llm_models_provider_name_providerd ON __SCHEMA__.llm_models (provider_id, name);
        ELSE
            CREATE UNIQUE INDEX IF NOT EXISTS llm_models_provider_name_providerd ON __SCHEMA__.llm_models (provider_id, name);
        END IF;
    END IF;
END $$;
-- (provider_id, name) serves look-ups by provider too: no second index on provider_id alone.
CREATE INDEX IF NOT EXISTS llm_routing_rules_model_providerd ON __SCHEMA__.llm_routing_rules (model_id);
CREATE INDEX IF NOT EXISTS llm_routing_rules_global_providerd ON __SCHEMA__.llm_routing_rules (created_at) WHERE model_id IS NULL;
CREATE INDEX IF NOT EXISTS llm_usage_logs_provider_providerd ON __SCHEMA__.llm_usage_logs (provider_id, created_at);

DROP FUNCTION providerd.fill(regclass, text);
