-- What providerd remembers; nothing of it is an interface.

CREATE TABLE providerd.meta (
    key text PRIMARY KEY,
    value text NOT NULL
);

-- One row for each provider that providerd created or adopted; `record` says which rows and fields are its own.
CREATE TABLE providerd.managed (
    name text PRIMARY KEY,
    provider_id uuid NOT NULL,
    digest bytea NOT NULL,
    file text NOT NULL,
    line integer NOT NULL,
    record text NOT NULL
);

-- The fence: every apply advances it, in its own transaction.
CREATE TABLE providerd.applied (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    revision text,
    dirty boolean
);
INSERT INTO providerd.applied (seq, at) VALUES (0, now());

-- Who may reconcile. Unlogged: a renewal every few seconds shall not fill the WAL, and after a crash of the
-- server the lease is free, which is right.
CREATE UNLOGGED TABLE providerd.lease (
    name text PRIMARY KEY,
    holder uuid NOT NULL,
    token bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE SEQUENCE providerd.lease_token;

CREATE TABLE providerd.suspended (
    -- '' stands for everything.
    provider text PRIMARY KEY,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

-- The audit trail.
CREATE TABLE providerd.events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    provider text,
    provider_id uuid,
    detail jsonb NOT NULL,
    reason text NOT NULL,
    file text,
    line integer,
    revision text
);
CREATE INDEX events_provider_idx ON providerd.events (provider, id);
CREATE INDEX events_at_idx ON providerd.events USING brin (at);
