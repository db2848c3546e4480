-- What a program of the second generation does all day.
INSERT INTO llm_providers (name, type, api_key_encrypted, api_base_url) VALUES ('added', 'groq', NULL, NULL);
UPDATE llm_providers SET api_key_encrypted = 'token-two', health_status = 'healthy', last_health_check = now()
    WHERE name = 'added';
UPDATE llm_providers SET api_key_encrypted = NULL WHERE name = 'added';
INSERT INTO llm_models (provider_id, name, cost_per_1m_input_tokens, cost_per_1m_output_tokens)
    SELECT id, 'new-model', 0.25, 0.5 FROM llm_providers WHERE name = 'added';
INSERT INTO llm_models (provider_id, name) SELECT id, 'new-model' FROM llm_providers WHERE name = 'added'
    ON CONFLICT (provider_id, name) DO UPDATE SET avg_latency_ms = 10;
INSERT INTO llm_providers (name, type) VALUES ('added', 'groq') ON CONFLICT (name, type) DO UPDATE SET priority = 2;
UPDATE llm_routing_rules SET strategy = 'latency', updated_at = now()
    WHERE id = (SELECT id FROM llm_routing_rules ORDER BY created_at DESC LIMIT 1);
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, input_tokens, output_tokens, total_tokens, cost)
    SELECT 'u', id, 'new-model', 7, 8, 15, 0.5 FROM llm_providers WHERE name = 'added';
DELETE FROM llm_usage_logs WHERE user_id = 'u';
DELETE FROM llm_providers WHERE name = 'added';
UPDATE llm_routing_rules SET strategy = 'cost', updated_at = created_at;
