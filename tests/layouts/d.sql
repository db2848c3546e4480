-- A fork of the second generation: a status word, models with a quality, a user in every row of usage.
CREATE TABLE llm_providers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(100) NOT NULL, type varchar(50) NOT NULL,
    api_key_encrypted text, api_base_url text NOT NULL, enabled boolean DEFAULT true, priority integer DEFAULT 0,
    config jsonb DEFAULT '{}', health_status varchar(20) DEFAULT 'unknown', last_health_check timestamp,
    created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now(), UNIQUE (name, type));
CREATE TABLE llm_models (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    provider_id uuid REFERENCES llm_providers (id) ON DELETE CASCADE, name varchar(200) NOT NULL,
    display_name varchar(200), cost_per_1m_input_tokens numeric(10,4), cost_per_1m_output_tokens numeric(10,4),
    context_length integer, enabled boolean DEFAULT true, metadata jsonb DEFAULT '{}', avg_latency_ms integer,
    quality_score numeric(3,2), power_level varchar(20) DEFAULT 'balanced',
    created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now(), UNIQUE (provider_id, name));
CREATE TABLE llm_routing_rules (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), strategy varchar(50) NOT NULL DEFAULT 'balanced',
    fallback_providers uuid[] DEFAULT '{}', model_aliases jsonb DEFAULT '{}', config jsonb DEFAULT '{}',
    created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
CREATE TABLE llm_usage_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id varchar(100) NOT NULL,
    provider_id uuid REFERENCES llm_providers (id), model_name varchar(200), input_tokens integer, output_tokens integer,
    cost numeric(10,6), latency_ms integer, power_level varchar(20), status varchar(20), error_message text,
    metadata jsonb DEFAULT '{}', created_at timestamp DEFAULT now());

INSERT INTO llm_providers (id, name, type, api_key_encrypted, api_base_url) VALUES
    ('00000000-0000-4000-8000-000000000001', 'openai-main', 'openai', 'token-one', 'https://api.openai.com/v1');
INSERT INTO llm_models (provider_id, name, cost_per_1m_input_tokens, cost_per_1m_output_tokens, quality_score)
    SELECT '00000000-0000-4000-8000-000000000001', 'm' || n, 1.5, 3, 0.5 FROM generate_series(1, 50) n;
INSERT INTO llm_routing_rules (strategy, model_aliases) VALUES ('cost', '{"fast": "m1"}');
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, input_tokens, output_tokens, cost, status)
    SELECT 'u' || n, '00000000-0000-4000-8000-000000000001', 'm1', n, 2 * n, 0.001, 'success'
    FROM generate_series(1, 200) n;
