-- What the tables are, where whoever looks into the database sees it. A comment that is there already is somebody's.
DO $do$
DECLARE
    entry text[];
    target regclass;
BEGIN
    FOREACH entry SLICE 1 IN ARRAY ARRAY[
        ['llm_providers', '', 'LLM providers. Rows that manifests declare are kept as declared by providerd; any other row is never touched.'],
        ['llm_providers', 'name', 'Unique; what manifests name it by.'],
        ['llm_providers', 'type', 'Which protocol it speaks.'],
        ['llm_providers', 'api_key_encrypted', 'Fernet token of the key; empty: no key. Always the same as encrypted_api_key.'],
        ['llm_providers', 'encrypted_api_key', 'Always the same as api_key_encrypted.'],
        ['llm_providers', 'api_key_source', 'Where consumers look for the key: database, environment, hybrid.'],
        ['llm_providers', 'api_key_updated_at', 'When the key last changed, UTC.'],
        ['llm_providers', 'api_key_last_tested', 'When the key was last tested, UTC.'],
        ['llm_providers', 'api_key_test_status', 'pending, valid, failed or error.'],
        ['llm_providers', 'api_base_url', 'Where it is reached, and the only host that its key goes to.'],
        ['llm_providers', 'priority', 'Higher is preferred.'],
        ['llm_providers', 'config', 'base_url, model_prefixes, description, then free form.'],
        ['llm_providers', 'health_status', 'unknown, healthy, degraded or unhealthy.'],
        ['llm_providers', 'last_health_check', 'UTC.'],
        ['llm_models', '', 'Models of providers, declared or discovered.'],
        ['llm_models', 'name', 'Unique within its provider; always the same as model_name.'],
        ['llm_models', 'model_name', 'Always the same as name.'],
        ['llm_models', 'context_length', 'Tokens.'],
        ['llm_models', 'cost_per_1m_tokens', 'USD per million tokens, where one price holds for both directions.'],
        ['llm_models', 'cost_per_1m_input_tokens', 'USD per million tokens; NULL is unknown.'],
        ['llm_models', 'cost_per_1m_output_tokens', 'USD per million tokens; NULL is unknown.'],
        ['llm_models', 'avg_latency_ms', 'Milliseconds.'],
        ['llm_routing_rules', '', 'Which models serve a power level and user tier. A row without model_id holds the global strategy and is always the newest.'],
        ['llm_routing_rules', 'power_level', 'eco, balanced or precision.'],
        ['llm_routing_rules', 'user_tier', 'all, or the name of a tier.'],
        ['llm_routing_rules', 'task_type', 'NULL: any.'],
        ['llm_routing_rules', 'priority', 'Higher is tried first.'],
        ['llm_routing_rules', 'weight', 'Share among rules of equal priority.'],
        ['llm_usage_logs', '', 'One row per request that reached a provider. Columns that mean the same in different generations of programs are kept equal by a trigger.'],
        ['llm_usage_logs', 'user_id', 'Whose request it was, as a trusted caller or the body says.'],
        ['llm_usage_logs', 'provider_id', 'Who answered last; NULL once that row is gone.'],
        ['llm_usage_logs', 'model_id', 'What answered last; NULL once that row is gone.'],
        ['llm_usage_logs', 'model_name', 'As in llm_models.name.'],
        ['llm_usage_logs', 'request_id', 'The header x-request-id.'],
        ['llm_usage_logs', 'prompt_tokens', 'All input tokens, cached ones included. Equal to input_tokens and request_tokens.'],
        ['llm_usage_logs', 'completion_tokens', 'All output tokens, reasoning included. Equal to output_tokens and response_tokens.'],
        ['llm_usage_logs', 'input_tokens', 'Equal to prompt_tokens.'],
        ['llm_usage_logs', 'request_tokens', 'Equal to prompt_tokens.'],
        ['llm_usage_logs', 'output_tokens', 'Equal to completion_tokens.'],
        ['llm_usage_logs', 'response_tokens', 'Equal to completion_tokens.'],
        ['llm_usage_logs', 'total_tokens', 'Input and output together.'],
        ['llm_usage_logs', 'cost_input_usd', 'Computed from tokens and prices; NULL is unknown.'],
        ['llm_usage_logs', 'cost_output_usd', 'Computed from tokens and prices; NULL is unknown.'],
        ['llm_usage_logs', 'cost_total_usd', 'What the provider reports, else what was computed; NULL is unknown, never free.'],
        ['llm_usage_logs', 'cost', 'Equal to cost_total_usd.'],
        ['llm_usage_logs', 'latency_ms', 'From the request to the last byte of the answer.'],
        ['llm_usage_logs', 'status_code', 'What the caller got; NULL: the gateway ended before.'],
        ['llm_usage_logs', 'status', 'success or error, as success says.'],
        ['llm_usage_logs', 'was_fallback', 'Whether another candidate was asked before.'],
        ['llm_usage_logs', 'metadata', 'What is not plain: usage_source, consumer, attempts, cached, written and reasoning tokens, prices, ttft_ms, route, seed.'],
        ['llm_usage_logs', 'created_at', 'When the request came, UTC.'],
        ['providerd.migrations', '', 'Migrations carried out.'],
        ['providerd.meta', '', 'Small facts by key.'],
        ['providerd.managed', '', 'Providers that providerd created or adopted, as last applied.'],
        ['providerd.applied', '', 'The fence: one row, whose seq grows with every applied catalog.'],
        ['providerd.lease', '', 'Who may do what alone, until when.'],
        ['providerd.events', '', 'The audit trail.'],
        ['providerd.health', '', 'What the checks of a provider remember.'],
        ['providerd.rollups', '', 'Sums of checks by hour and day.'],
        ['providerd.discovered', '', 'Models that their provider lists.'],
        ['providerd.discovery', '', 'How the last look at a list of models ended.'],
        ['providerd.usage_cursor', '', 'How far each spool of usage is stored; moved in the transaction that stores its rows.'],
        ['providerd.usage_cursor', 'spool', 'One process that wrote usage; each start has an id of its own.'],
        ['providerd.usage_hourly', '', 'Sums of usage by hour, node, consumer, provider, model and power level, written with the rows.'],
        ['providerd.usage_hourly', 'input', 'Input tokens, cached and written ones included.'],
        ['providerd.usage_hourly', 'cost', 'USD, without requests whose price is unknown; those are counted in unpriced.'],
        ['providerd.usage_hourly', 'latency', 'Requests by class of latency: class n (from 1) goes up to 8 x 2^((n-1)/2) ms.'],
        ['providerd.usage_hourly', 'ttft', 'Requests by class of time to the first content, classes as for latency.'],
        ['providerd.usage_daily', '', 'The same by day.'],
        ['providerd.usage_users', '', 'The same by day, consumer and user.'],
        ['providerd.usage_models', '', 'Models that have usage; they are retired, not deleted.'],
        ['providerd.budget', '', 'Per budget and window, in 1e-10 USD: what is spent, and what nodes hold leased of it.'],
        ['providerd.budget_lease', '', 'What a node may spend of a budget without asking, in 1e-10 USD.']]
    LOOP
        target := entry[1]::regclass;
        IF entry[2] = '' THEN
            IF obj_description(target, 'pg_class') IS NULL THEN
                EXECUTE format('COMMENT ON TABLE %s IS %L', target, entry[3]);
            END IF;
        ELSIF col_description(target, (SELECT attnum FROM pg_attribute WHERE attrelid = target AND attname = entry[2])) IS NULL THEN
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', target, entry[2], entry[3]);
        END IF;
    END LOOP;
END $do$;
