-- What providerd remembers for itself. Nothing outside the schema `providerd` is named here.

CREATE TABLE IF NOT EXISTS providerd.meta (
    key   text PRIMARY KEY,
    value text NOT NULL
);

-- One row per provider that providerd created or adopted. `record` is text, not jsonb: it is read whole, compared
-- by its digest and parsed only where something differs.
CREATE TABLE IF NOT EXISTS providerd.managed (
    name        text PRIMARY KEY,
    provider_id uuid NOT NULL,
    digest      bytea NOT NULL,
    file        text NOT NULL,
    line        integer NOT NULL,
    record      text NOT NULL
);
CREATE INDEX IF NOT EXISTS managed_provider_id ON providerd.managed (provider_id);

-- The fence: one row, whose `seq` grows by one with every applied catalog. A daemon that was overtaken finds
-- another `seq` than it expects and writes nothing.
CREATE TABLE IF NOT EXISTS providerd.applied (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq      bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    revision text,
    dirty    boolean,
    digest   text,
    holder   uuid
);
INSERT INTO providerd.applied (seq) VALUES (0) ON CONFLICT DO NOTHING;

-- `token` grows with every change of holder, so that an old holder can be told from the present one.
CREATE TABLE IF NOT EXISTS providerd.lease (
    name       text PRIMARY KEY,
    holder     uuid NOT NULL,
    token      bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS providerd.events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind        text NOT NULL,
    provider    text,
    provider_id uuid,
    detail      jsonb NOT NULL DEFAULT '{}',
    reason      text NOT NULL DEFAULT '',
    file        text,
    line        integer,
    revision    text
);
CREATE INDEX IF NOT EXISTS events_provider ON providerd.events (provider, id);
CREATE INDEX IF NOT EXISTS events_at ON providerd.events (at);
