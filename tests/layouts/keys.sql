-- A later step that some installations of either generation took.
ALTER TABLE llm_providers ADD COLUMN encrypted_api_key text, ADD COLUMN api_key_source varchar(50) DEFAULT 'environment',
    ADD COLUMN api_key_updated_at timestamp, ADD COLUMN api_key_last_tested timestamp,
    ADD COLUMN api_key_test_status varchar(20);
UPDATE llm_providers SET encrypted_api_key = 'token-newer', api_key_test_status = 'valid' WHERE name = 'openai-main';
