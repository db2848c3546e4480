-- What discovery remembers. No foreign keys: bookkeeping must not stand in the way of who deletes rows of the shared
-- tables; what has lost its row is cleared away by the next look.

-- Models that their provider has been seen to list, or that were created because it did. `created`: discovery made the
-- row of llm_models. `vanished_at`: since when the provider no longer lists it.
CREATE TABLE IF NOT EXISTS providerd.discovered (
    model_id    uuid PRIMARY KEY,
    provider_id uuid NOT NULL,
    name        text NOT NULL,
    created     boolean NOT NULL,
    found_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    vanished_at timestamptz
);
CREATE INDEX IF NOT EXISTS discovered_provider_id ON providerd.discovered (provider_id);

-- How the last look at a provider's list ended, written only where that changes. `policy` names what was asked for: a
-- provider whose manifest asks for something else is looked at without waiting for its time.
CREATE TABLE IF NOT EXISTS providerd.discovery (
    provider_id uuid PRIMARY KEY,
    policy      text NOT NULL,
    state       text NOT NULL,
    detail      text NOT NULL DEFAULT '',
    since       timestamptz NOT NULL DEFAULT clock_timestamp()
);
