-- What checks and key tests remember. Nothing outside the schema `providerd` is named here, so no notice of drift
-- follows from it.

-- One row per checked provider. `memory` is text: it is written and read whole.
CREATE TABLE IF NOT EXISTS providerd.health (
    provider_id uuid PRIMARY KEY,
    memory      text NOT NULL
);

-- Sums of the checks of one provider: by the hour for two days, by the day for a month. `latency` counts answers by
-- class of latency; the classes stand in the program.
CREATE TABLE IF NOT EXISTS providerd.rollups (
    provider_id uuid NOT NULL,
    span        "char" NOT NULL CHECK (span IN ('h', 'd')),
    at          timestamptz NOT NULL,
    ok          integer NOT NULL,
    slow        integer NOT NULL,
    soft        integer NOT NULL,
    hard        integer NOT NULL,
    auth        integer NOT NULL,
    latency     integer[] NOT NULL,
    PRIMARY KEY (provider_id, span, at)
);
