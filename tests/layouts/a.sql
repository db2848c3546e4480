-- The first generation: one key column, one price, a single global routing row, request/response counters.
CREATE TABLE llm_providers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL UNIQUE, type varchar(50) NOT NULL,
    api_key_encrypted text NOT NULL, enabled boolean DEFAULT true, priority integer DEFAULT 0,
    config jsonb DEFAULT '{}', created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
CREATE TABLE llm_models (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    provider_id uuid NOT NULL REFERENCES llm_providers (id) ON DELETE CASCADE, name varchar(255) NOT NULL,
    display_name varchar(255), cost_per_1m_tokens numeric(10,4), context_length integer,
    enabled boolean DEFAULT true, metadata jsonb DEFAULT '{}', updated_at timestamp DEFAULT '2001-01-01');
CREATE TABLE llm_routing_rules (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), strategy varchar(50) NOT NULL DEFAULT 'balanced',
    fallback_providers uuid[], model_aliases jsonb, config jsonb);
CREATE TABLE llm_usage_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id varchar(255) NOT NULL,
    provider_id uuid REFERENCES llm_providers (id) ON DELETE SET NULL, model_name varchar(255) NOT NULL,
    request_tokens integer NOT NULL DEFAULT 0, response_tokens integer NOT NULL DEFAULT 0, total_tokens integer,
    cost numeric(10,6), latency_ms integer, success boolean, error_message text,
    created_at timestamp DEFAULT now());
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON llm_models FOR EACH ROW EXECUTE FUNCTION touch();

INSERT INTO llm_providers (id, name, type, api_key_encrypted, priority, config) VALUES
    ('00000000-0000-4000-8000-000000000001', 'openai-main', 'openai', 'token-one', 5, '{"region": "us"}'),
    ('00000000-0000-4000-8000-000000000002', 'local', 'ollama', '', 1, '[]');
INSERT INTO llm_models (provider_id, name, cost_per_1m_tokens, context_length)
    SELECT '00000000-0000-4000-8000-000000000001', 'm' || n, 1.5, 4096 FROM generate_series(1, 50) n;
INSERT INTO llm_routing_rules (strategy, model_aliases, config) VALUES ('cost', '{"fast": "m1"}', '{"x": 1}');
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, request_tokens, response_tokens, total_tokens, cost,
                            latency_ms, success)
    SELECT 'u' || n, '00000000-0000-4000-8000-000000000001', 'm1', n, 2 * n, 3 * n, 0.001, 100, true
    FROM generate_series(1, 200) n;
