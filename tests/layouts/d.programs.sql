-- What a program of the fork does all day.
INSERT INTO llm_providers (name, type, api_key_encrypted, api_base_url) VALUES ('added', 'groq', NULL, 'https://groq.example');
INSERT INTO llm_models (provider_id, name, quality_score, power_level)
    SELECT id, 'new-model', 0.9, 'eco' FROM llm_providers WHERE name = 'added';
INSERT INTO llm_providers (name, type, api_base_url) VALUES ('added', 'groq', 'https://groq.example')
    ON CONFLICT (name, type) DO UPDATE SET priority = 2;
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, input_tokens, output_tokens, cost, latency_ms, power_level, status)
    SELECT 'u', id, 'new-model', 7, 8, 0.5, 12, 'eco', 'error' FROM llm_providers WHERE name = 'added';
SELECT provider_id, count(*), sum(input_tokens), sum(output_tokens), sum(cost) FROM llm_usage_logs
    WHERE status = 'success' GROUP BY provider_id;
SELECT power_level, count(*), sum(cost) FROM llm_usage_logs GROUP BY power_level;
DELETE FROM llm_usage_logs WHERE user_id = 'u';
DELETE FROM llm_providers WHERE name = 'added';
