-- What manifests declare for the gateway alone: consumers, tiers, aliases and power levels, and what providers and models
-- say beyond the columns of the shared tables. Nodes without manifests read it from here.

-- `spec` is the JSON that the gateway reads; `applied` is the digest of what providerd wrote last, so that it can tell
-- what another program made or changed. Names compare byte by byte: a provider's models are the range from `name/` on.
CREATE TABLE IF NOT EXISTS providerd.gateway_object (
    kind       varchar(20) NOT NULL,
    name       text COLLATE "C" NOT NULL,
    spec       jsonb NOT NULL,
    file       text,
    line       integer,
    revision   text,
    applied    bytea,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, name)
);

-- Hints to look again: for gateways whoever changed it, for the daemon unless it did so itself.
CREATE OR REPLACE FUNCTION providerd.notify_gateway() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('providerd_gateway', '');
    IF current_setting('providerd.applying', true) IS DISTINCT FROM 'on' THEN
        PERFORM pg_notify('providerd_drift', TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER providerd_gateway AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON providerd.gateway_object
    FOR EACH STATEMENT EXECUTE FUNCTION providerd.notify_gateway();
COMMENT ON TABLE providerd.gateway_object IS
    'What manifests declare for the gateway: consumers, tiers, aliases, power levels, and settings of providers and models. Kept as declared by providerd.';
