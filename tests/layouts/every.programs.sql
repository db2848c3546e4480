-- What programs of every generation say to a database that providerd has migrated, whoever made its tables: their
-- migrations, upserts, inserts and reads. Each ends where it began.

-- Migrations that add what they need, and find it.
CREATE TABLE IF NOT EXISTS llm_usage_logs (id uuid PRIMARY KEY, user_id varchar(100) NOT NULL, status varchar(20));
ALTER TABLE llm_usage_logs ADD COLUMN IF NOT EXISTS input_tokens integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS output_tokens integer DEFAULT 0, ADD COLUMN IF NOT EXISTS metadata jsonb;
CREATE INDEX IF NOT EXISTS their_usage_user ON llm_usage_logs (user_id);
CREATE INDEX IF NOT EXISTS their_usage_status ON llm_usage_logs (status);
CREATE INDEX IF NOT EXISTS their_models_quality ON llm_models (quality_score DESC);
-- A trigger of theirs that sums tokens by the first generation's words.
CREATE OR REPLACE FUNCTION their_total() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.total_tokens := coalesce(NEW.request_tokens, NEW.input_tokens, 0) + coalesce(NEW.response_tokens, NEW.output_tokens, 0);
    RETURN NEW;
END $$;
CREATE TRIGGER their_total BEFORE INSERT ON llm_usage_logs FOR EACH ROW EXECUTE FUNCTION their_total();
DROP TRIGGER their_total ON llm_usage_logs;

-- Upserts by either key.
INSERT INTO llm_providers (name, type, api_base_url, priority) VALUES ('every', 'openrouter', 'https://every.example', 1)
    ON CONFLICT (name, type) DO UPDATE SET priority = EXCLUDED.priority;
INSERT INTO llm_providers (name, type, api_base_url, priority) VALUES ('every', 'openrouter', 'https://every.example', 2)
    ON CONFLICT (name) DO UPDATE SET priority = EXCLUDED.priority;
INSERT INTO llm_providers (name, type, api_base_url, api_key_encrypted, api_key_source, api_key_updated_at, api_key_test_status)
    VALUES ('every', 'openrouter', 'https://every.example', 'token', 'database', now(), 'success')
    ON CONFLICT (name, type) DO UPDATE SET api_key_encrypted = EXCLUDED.api_key_encrypted;
INSERT INTO llm_models (provider_id, name, display_name, cost_per_1m_input_tokens, cost_per_1m_output_tokens,
                        context_length, enabled, metadata, avg_latency_ms, quality_score, power_level)
    SELECT id, 'every-model', 'Every', 0.25, 0.5, 8192, true, '{}', 800, 0.91, 'eco' FROM llm_providers WHERE name = 'every'
    ON CONFLICT (provider_id, name) DO UPDATE SET quality_score = EXCLUDED.quality_score;

-- Rows of usage in every generation's words.
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, request_tokens, response_tokens, total_tokens, cost, latency_ms,
                            success, error_message)
    SELECT 'every', id, 'every-model', 1, 2, 3, 0.5, 10, true, NULL FROM llm_providers WHERE name = 'every';
INSERT INTO llm_usage_logs (user_id, model_name, input_tokens, output_tokens, total_tokens, cost, latency_ms, success, metadata)
    VALUES ('every', 'every-model', 1, 2, 3, 0.5, 10, true, '{"source": "lab"}');
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, input_tokens, output_tokens, cost, latency_ms, power_level, status)
    SELECT 'every', id, 'every-model', 1, 2, 0.5, 10, 'eco', 'success' FROM llm_providers WHERE name = 'every';
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, prompt_tokens, completion_tokens, cost_total_usd, status_code)
    SELECT 'every', id, 'every-model', 1, 2, 0.5, 200 FROM llm_providers WHERE name = 'every';
DO $$
BEGIN
    ASSERT (SELECT count(*) FROM llm_usage_logs WHERE user_id = 'every' AND prompt_tokens = 1 AND input_tokens = 1
            AND request_tokens = 1 AND completion_tokens = 2 AND output_tokens = 2 AND response_tokens = 2
            AND total_tokens = 3 AND cost = 0.5 AND cost_total_usd = 0.5 AND success AND status = 'success') = 4;
END $$;

-- Reads of pages.
SELECT count(*), coalesce(sum(total_tokens), 0), coalesce(sum(cost), 0), coalesce(avg(latency_ms), 0), count(DISTINCT user_id)
    FROM llm_usage_logs WHERE created_at >= now() - interval '7 days';
SELECT p.id, p.name, count(u.id), sum(u.input_tokens + u.output_tokens), sum(u.cost), avg(u.latency_ms)
    FROM llm_usage_logs u JOIN llm_providers p ON p.id = u.provider_id WHERE u.status = 'success' GROUP BY p.id, p.name;
SELECT power_level, count(*), sum(cost), avg(latency_ms) FROM llm_usage_logs GROUP BY power_level;
SELECT date(created_at), user_id, model_name, input_tokens, output_tokens, cost, latency_ms, status FROM llm_usage_logs
    ORDER BY created_at DESC LIMIT 100;
SELECT m.name, count(u.id), sum(u.cost) FROM llm_models m LEFT JOIN llm_usage_logs u ON u.model_name = m.name
    GROUP BY m.name ORDER BY 2 DESC LIMIT 5;
SELECT strategy, fallback_providers, model_aliases, config FROM llm_routing_rules ORDER BY updated_at DESC LIMIT 1;
SELECT COUNT(*) AS total_calls, SUM(prompt_tokens) AS input_tokens, SUM(completion_tokens) AS output_tokens,
       SUM(cost_total_usd) AS total_cost FROM llm_usage_logs
WHERE provider_id = 'dd1a38b8-b124-43db-b0d3-1aff0407397a' AND created_at >= NOW() - INTERVAL '30 days';

DELETE FROM llm_usage_logs WHERE user_id = 'every';
DELETE FROM llm_models WHERE name = 'every-model';
DELETE FROM llm_providers WHERE name = 'every';
