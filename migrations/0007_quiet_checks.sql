-- What a check writes, made cheap. The two status columns of every provider change once a minute.

-- These two triggers concern the key columns alone, so they name them: for a check their conditions are not looked at.
CREATE OR REPLACE TRIGGER providerd_key_update BEFORE UPDATE OF api_key_encrypted, encrypted_api_key ON __SCHEMA__.llm_providers
    FOR EACH ROW WHEN (coalesce(NEW.api_key_encrypted, '') <> coalesce(NEW.encrypted_api_key, '')
                       AND (NEW.api_key_encrypted IS DISTINCT FROM OLD.api_key_encrypted
                            OR NEW.encrypted_api_key IS DISTINCT FROM OLD.encrypted_api_key))
    EXECUTE FUNCTION providerd.keep_key();
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = $name$__SCHEMA__.llm_providers$name$::regclass AND tgname = 'providerd_key_zero') THEN
        CREATE OR REPLACE TRIGGER providerd_key_zero
            BEFORE INSERT OR UPDATE OF api_key_encrypted, encrypted_api_key ON __SCHEMA__.llm_providers
            FOR EACH ROW WHEN (NEW.api_key_encrypted IS NULL)
            EXECUTE FUNCTION providerd.keep_key_not_null();
    END IF;
    -- A new version of a row that finds room in its own page logs what differs and touches no index; elsewhere it is
    -- logged whole. Pages filled from now on keep that room. A table that was given a setting of its own keeps it.
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = $name$__SCHEMA__.llm_providers$name$::regclass
                   AND array_to_string(reloptions, ',') LIKE '%fillfactor=%') THEN
        ALTER TABLE __SCHEMA__.llm_providers SET (fillfactor = 50);
    END IF;
END $$;
ALTER TABLE providerd.health SET (fillfactor = 50);
ALTER TABLE providerd.rollups SET (fillfactor = 70);
