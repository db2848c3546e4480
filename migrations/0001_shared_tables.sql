-- The tables that other programs read and write. On a database that has some of them already, only what is
-- missing is added: nothing is dropped, renamed, retyped or rewritten, and no constraint of theirs is touched.
-- {schema} is the quoted name of the schema the tables live in.

CREATE TABLE IF NOT EXISTS {schema}.llm_providers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL UNIQUE,
    type varchar(50) NOT NULL,
    api_key_encrypted text NOT NULL DEFAULT '',
    encrypted_api_key text,
    api_key_source varchar(50) DEFAULT 'database',
    api_key_updated_at timestamp,
    api_key_last_tested timestamp,
    api_key_test_status varchar(50),
    api_base_url text,
    enabled boolean NOT NULL DEFAULT true,
    priority integer NOT NULL DEFAULT 0,
    config jsonb NOT NULL DEFAULT '{}',
    health_status varchar(50) NOT NULL DEFAULT 'unknown',
    last_health_check timestamp,
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    updated_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc')
);

-- Columns without a default, or with one that is not volatile, are added without rewriting the table.
ALTER TABLE {schema}.llm_providers
    ADD COLUMN IF NOT EXISTS api_key_encrypted text,
    ADD COLUMN IF NOT EXISTS encrypted_api_key text,
    ADD COLUMN IF NOT EXISTS api_key_source varchar(50) DEFAULT 'database',
    ADD COLUMN IF NOT EXISTS api_key_updated_at timestamp,
    ADD COLUMN IF NOT EXISTS api_key_last_tested timestamp,
    ADD COLUMN IF NOT EXISTS api_key_test_status varchar(50),
    ADD COLUMN IF NOT EXISTS api_base_url text,
    ADD COLUMN IF NOT EXISTS enabled boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS priority integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS config jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS health_status varchar(50) DEFAULT 'unknown',
    ADD COLUMN IF NOT EXISTS last_health_check timestamp,
    ADD COLUMN IF NOT EXISTS created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    ADD COLUMN IF NOT EXISTS updated_at timestamp DEFAULT (now() AT TIME ZONE 'utc');

CREATE TABLE IF NOT EXISTS {schema}.llm_models (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    provider_id uuid NOT NULL REFERENCES {schema}.llm_providers (id) ON DELETE CASCADE,
    name varchar(255) NOT NULL,
    model_name varchar(255),
    display_name varchar(255),
    context_length integer,
    cost_per_1m_tokens numeric(12, 4),
    cost_per_1m_input_tokens numeric(12, 4),
    cost_per_1m_output_tokens numeric(12, 4),
    enabled boolean NOT NULL DEFAULT true,
    metadata jsonb NOT NULL DEFAULT '{}',
    avg_latency_ms integer,
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    updated_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    UNIQUE (provider_id, name)
);

ALTER TABLE {schema}.llm_models
    ADD COLUMN IF NOT EXISTS model_name varchar(255),
    ADD COLUMN IF NOT EXISTS display_name varchar(255),
    ADD COLUMN IF NOT EXISTS context_length integer,
    ADD COLUMN IF NOT EXISTS cost_per_1m_tokens numeric(12, 4),
    ADD COLUMN IF NOT EXISTS cost_per_1m_input_tokens numeric(12, 4),
    ADD COLUMN IF NOT EXISTS cost_per_1m_output_tokens numeric(12, 4),
    ADD COLUMN IF NOT EXISTS enabled boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS avg_latency_ms integer,
    ADD COLUMN IF NOT EXISTS created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    ADD COLUMN IF NOT EXISTS updated_at timestamp DEFAULT (now() AT TIME ZONE 'utc');

CREATE TABLE IF NOT EXISTS {schema}.llm_routing_rules (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model_id uuid REFERENCES {schema}.llm_models (id) ON DELETE CASCADE,
    power_level varchar(50),
    user_tier varchar(50),
    task_type varchar(50),
    priority integer NOT NULL DEFAULT 100,
    weight integer NOT NULL DEFAULT 100,
    is_active boolean NOT NULL DEFAULT true,
    strategy varchar(50) DEFAULT 'balanced',
    fallback_providers uuid[] DEFAULT '{}',
    model_aliases jsonb DEFAULT '{}',
    config jsonb DEFAULT '{}',
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    updated_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc')
);

ALTER TABLE {schema}.llm_routing_rules
    ADD COLUMN IF NOT EXISTS model_id uuid REFERENCES {schema}.llm_models (id) ON DELETE CASCADE,
    ADD COLUMN IF NOT EXISTS power_level varchar(50),
    ADD COLUMN IF NOT EXISTS user_tier varchar(50),
    ADD COLUMN IF NOT EXISTS task_type varchar(50),
    ADD COLUMN IF NOT EXISTS priority integer DEFAULT 100,
    ADD COLUMN IF NOT EXISTS weight integer DEFAULT 100,
    ADD COLUMN IF NOT EXISTS is_active boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS strategy varchar(50) DEFAULT 'balanced',
    ADD COLUMN IF NOT EXISTS fallback_providers uuid[] DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS model_aliases jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS config jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    ADD COLUMN IF NOT EXISTS updated_at timestamp DEFAULT (now() AT TIME ZONE 'utc');

CREATE TABLE IF NOT EXISTS {schema}.llm_usage_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id varchar(255),
    provider_id uuid REFERENCES {schema}.llm_providers (id) ON DELETE SET NULL,
    model_id uuid REFERENCES {schema}.llm_models (id) ON DELETE SET NULL,
    model_name varchar(255),
    request_id varchar(255),
    power_level varchar(50),
    prompt_tokens integer,
    completion_tokens integer,
    total_tokens integer,
    cost_input_usd numeric(14, 8),
    cost_output_usd numeric(14, 8),
    cost_total_usd numeric(14, 8),
    latency_ms integer,
    status_code integer,
    success boolean,
    error_message text,
    was_fallback boolean DEFAULT false,
    metadata jsonb DEFAULT '{}',
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc')
);

ALTER TABLE {schema}.llm_usage_logs
    ADD COLUMN IF NOT EXISTS user_id varchar(255),
    ADD COLUMN IF NOT EXISTS provider_id uuid REFERENCES {schema}.llm_providers (id) ON DELETE SET NULL,
    ADD COLUMN IF NOT EXISTS model_id uuid REFERENCES {schema}.llm_models (id) ON DELETE SET NULL,
    ADD COLUMN IF NOT EXISTS model_name varchar(255),
    ADD COLUMN IF NOT EXISTS request_id varchar(255),
    ADD COLUMN IF NOT EXISTS power_level varchar(50),
    ADD COLUMN IF NOT EXISTS prompt_tokens integer,
    ADD COLUMN IF NOT EXISTS completion_tokens integer,
    ADD COLUMN IF NOT EXISTS total_tokens integer,
    ADD COLUMN IF NOT EXISTS cost_input_usd numeric(14, 8),
    ADD COLUMN IF NOT EXISTS cost_output_usd numeric(14, 8),
    ADD COLUMN IF NOT EXISTS cost_total_usd numeric(14, 8),
    ADD COLUMN IF NOT EXISTS latency_ms integer,
    ADD COLUMN IF NOT EXISTS status_code integer,
    ADD COLUMN IF NOT EXISTS success boolean,
    ADD COLUMN IF NOT EXISTS error_message text,
    ADD COLUMN IF NOT EXISTS was_fallback boolean DEFAULT false,
    ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at timestamp DEFAULT (now() AT TIME ZONE 'utc');
