-- What a program of the first generation does all day.
INSERT INTO llm_providers (name, type, api_key_encrypted, enabled, priority, config)
    VALUES ('added', 'groq', 'token-added', true, 3, '{}');
UPDATE llm_providers SET api_key_encrypted = 'token-two', updated_at = now() WHERE name = 'added';
INSERT INTO llm_models (provider_id, name, display_name, cost_per_1m_tokens, context_length)
    SELECT id, 'new-model', 'New', 0.25, 8192 FROM llm_providers WHERE name = 'added';
UPDATE llm_models SET name = 'renamed', enabled = false WHERE name = 'new-model';
UPDATE llm_routing_rules SET strategy = 'latency' WHERE id = (SELECT id FROM llm_routing_rules LIMIT 1);
INSERT INTO llm_usage_logs (user_id, provider_id, model_name, request_tokens, response_tokens, total_tokens, cost,
                            latency_ms, success, error_message)
    SELECT 'u', id, 'renamed', 7, 8, 15, 0.5, 10, true, NULL FROM llm_providers WHERE name = 'added';
DELETE FROM llm_usage_logs WHERE user_id = 'u';
DELETE FROM llm_providers WHERE name = 'added';
UPDATE llm_routing_rules SET strategy = 'cost';
