-- What the tables are, where whoever looks into the database sees it. A comment that is there already is somebody's.
DO $do$
DECLARE
    entry text[];
    target regclass;
BEGIN
    FOREACH entry SLICE 1 IN ARRAY ARRAY[
        [$name$__SCHEMA__.llm_providers$name$, '', 'LLM providers. Rows that manifests declare are kept as declared by providerd; any other row is never touched.'],
        [$name$__SCHEMA__.llm_providers$name$, 'name', 'Unique; what manifests name it by.'],
        [$name$__SCHEMA__.llm_providers$name$, 'type', 'Which protocol it speaks.'],
        [$name$__SCHEMA__.llm_providers$name$, 'api_key_encrypted', 'Fernet token of the key; empty: no key. Always the same as encrypted_api_key.'],
        [$name$__SCHEMA__.llm_providers$name$, 'encrypted_api_key', 'Always the same as api_key_encrypted.'],
        [$name$__SCHEMA__.llm_providers$name$, 'api_key_source', 'Where consumers look for the key: database, environment, hybrid.'],
        [$name$__SCHEMA__.llm_providers$name$, 'api_key_updated_at', 'When the key last changed, UTC.'],
        [$name$__SCHEMA__.llm_providers$name$, 'api_key_last_tested', 'When the key was last tested, UTC.'],
        [$name$__SCHEMA__.llm_providers$name$, 'api_key_test_status', 'pending, valid, failed or error.'],
        [$name$__SCHEMA__.llm_providers$name$, 'api_base_url', 'Where it is reached, and the only host that its key goes to.'],
        [$name$__SCHEMA__.llm_providers$name$, 'priority', 'Higher is preferred.'],
        [$name$__SCHEMA__.llm_providers$name$, 'config', 'base_url, model_prefixes, description, then free form.'],
        [$name$__SCHEMA__.llm_providers$name$, 'health_status', 'unknown, healthy, degraded or unhealthy.'],
        [$name$__SCHEMA__.llm_providers$name$, 'last_health_check', 'UTC.'],
        [$name$__SCHEMA__.llm_models$name$, '', 'Models of providers, declared or discovered.'],
        [$name$__SCHEMA__.llm_models$name$, 'name', 'Unique within its provider; always the same as model_name.'],
        [$name$__SCHEMA__.llm_models$name$, 'model_name', 'Always the same as name.'],
        [$name$__SCHEMA__.llm_models$name$, 'context_length', 'Tokens.'],
        [$name$__SCHEMA__.llm_models$name$, 'cost_per_1m_tokens', 'USD per million tokens, where one price holds for both directions.'],
        [$name$__SCHEMA__.llm_models$name$, 'cost_per_1m_input_tokens', 'USD per million tokens; NULL is unknown.'],
        [$name$__SCHEMA__.llm_models$name$, 'cost_per_1m_output_tokens', 'USD per million tokens; NULL is unknown.'],
        [$name$__SCHEMA__.llm_models$name$, 'avg_latency_ms', 'Milliseconds.'],
        [$name$__SCHEMA__.llm_routing_rules$name$, '', 'Which models serve a power level and user tier. A row without model_id holds the global strategy and is always the newest.'],
        [$name$__SCHEMA__.llm_routing_rules$name$, 'power_level', 'eco, balanced or precision.'],
        [$name$__SCHEMA__.llm_routing_rules$name$, 'user_tier', 'all, or the name of a tier.'],
        [$name$__SCHEMA__.llm_routing_rules$name$, 'task_type', 'NULL: any.'],
        [$name$__SCHEMA__.llm_routing_rules$name$, 'priority', 'Higher is tried first.'],
        [$name$__SCHEMA__.llm_routing_rules$name$, 'weight', 'Share among rules of equal priority.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, '', 'One row per request that reached a provider. Columns that mean the same in different generations of programs are kept equal by a trigger.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'user_id', 'Whose request it was, as a trusted caller or the body says.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'provider_id', 'Who answered last; NULL once that row is gone.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'model_id', 'What answered last; NULL once that row is gone.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'model_name', 'The name of the model in its table, not the provider''s word for it.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'request_id', 'The header x-request-id.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'prompt_tokens', 'All input tokens, cached ones included. Equal to input_tokens and request_tokens.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'completion_tokens', 'All output tokens, reasoning included. Equal to output_tokens and response_tokens.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'input_tokens', 'Equal to prompt_tokens.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'request_tokens', 'Equal to prompt_tokens.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'output_tokens', 'Equal to completion_tokens.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'response_tokens', 'Equal to completion_tokens.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'total_tokens', 'Input and output together.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'cost_input_usd', 'Computed from tokens and prices; NULL is unknown.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'cost_output_usd', 'Computed from tokens and prices; NULL is unknown.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'cost_total_usd', 'What the provider reports, else what was computed; NULL is unknown, never free.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'cost', 'Equal to cost_total_usd.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'latency_ms', 'From the request to the last byte of the answer.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'status_code', 'What the caller got; NULL: the gateway ended before.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'status', 'success or error, as success says.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'was_fallback', 'Whether another candidate was asked before.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'metadata', 'What is not plain: usage_source, consumer, attempts, cached, written and reasoning tokens, prices, ttft_ms, route, seed.'],
        [$name$__SCHEMA__.llm_usage_logs$name$, 'created_at', 'When the request came, UTC.'],
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
