-- Sums that answer at once whatever range is asked: classes of latency as one number, months, and series of one dimension.

-- A sketch is one number with twelve digits for each class, the fastest class last: it is added as a number is, where an
-- array of 36 counts took 36 additions for each row.
DO $$
DECLARE
    one text;
BEGIN
    FOREACH one IN ARRAY ARRAY['usage_hourly', 'usage_daily'] LOOP
        EXECUTE format('ALTER TABLE providerd.%I ADD COLUMN latency_classes numeric NOT NULL DEFAULT 0,
                                                 ADD COLUMN ttft_classes numeric NOT NULL DEFAULT 0', one);
        EXECUTE format($sql$
            UPDATE providerd.%I s SET
                latency_classes = coalesce((SELECT string_agg(lpad(c::text, 12, '0'), '' ORDER BY i DESC)::numeric
                                            FROM unnest(s.latency) WITH ORDINALITY u (c, i)), 0),
                ttft_classes    = coalesce((SELECT string_agg(lpad(c::text, 12, '0'), '' ORDER BY i DESC)::numeric
                                            FROM unnest(s.ttft) WITH ORDINALITY u (c, i)), 0)
        $sql$, one);
        EXECUTE format('ALTER TABLE providerd.%I DROP COLUMN latency, DROP COLUMN ttft', one);
    END LOOP;
END $$;

CREATE TABLE IF NOT EXISTS providerd.usage_monthly (LIKE providerd.usage_daily INCLUDING ALL) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS providerd.usage_users_monthly (LIKE providerd.usage_users INCLUDING ALL) WITH (fillfactor = 70);

-- One dimension each: kind is all, provider, model, consumer or level.
CREATE TABLE IF NOT EXISTS providerd.usage_series_hourly (
    at              timestamptz NOT NULL,
    node            text NOT NULL,
    kind            text NOT NULL,
    name            text NOT NULL,
    requests        bigint NOT NULL,
    errors          bigint NOT NULL,
    fallbacks       bigint NOT NULL,
    input           bigint NOT NULL,
    cached          bigint NOT NULL,
    written         bigint NOT NULL,
    output          bigint NOT NULL,
    reasoning       bigint NOT NULL,
    cost            numeric(24, 10) NOT NULL,
    unpriced        bigint NOT NULL,
    latency_ms      bigint NOT NULL,
    latency_classes numeric NOT NULL,
    ttft_classes    numeric NOT NULL,
    PRIMARY KEY (kind, at, node, name)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS providerd.usage_series_daily (LIKE providerd.usage_series_hourly INCLUDING ALL) WITH (fillfactor = 70);

-- What was summed before. Months are those of UTC, as all that is summed.
INSERT INTO providerd.usage_monthly (at, node, consumer, provider, model, power_level, requests, errors, fallbacks, input, cached,
                                     written, output, reasoning, cost, unpriced, latency_ms, latency_classes, ttft_classes)
SELECT date_trunc('month', at, 'UTC'), node, consumer, provider, model, power_level, sum(requests), sum(errors), sum(fallbacks),
       sum(input), sum(cached), sum(written), sum(output), sum(reasoning), sum(cost), sum(unpriced), sum(latency_ms),
       sum(latency_classes), sum(ttft_classes)
FROM providerd.usage_daily GROUP BY 1, 2, 3, 4, 5, 6 ON CONFLICT DO NOTHING;

INSERT INTO providerd.usage_users_monthly (at, node, consumer, user_id, requests, errors, fallbacks, input, cached, written, output,
                                           reasoning, cost, unpriced, latency_ms)
SELECT date_trunc('month', at, 'UTC'), node, consumer, user_id, sum(requests), sum(errors), sum(fallbacks), sum(input), sum(cached),
       sum(written), sum(output), sum(reasoning), sum(cost), sum(unpriced), sum(latency_ms)
FROM providerd.usage_users GROUP BY 1, 2, 3, 4 ON CONFLICT DO NOTHING;

DO $$
DECLARE
    span text;
BEGIN
    FOREACH span IN ARRAY ARRAY['hourly', 'daily'] LOOP
        EXECUTE format($sql$
            INSERT INTO providerd.%I (at, node, kind, name, requests, errors, fallbacks, input, cached, written, output, reasoning,
                                      cost, unpriced, latency_ms, latency_classes, ttft_classes)
            SELECT at, node, k.kind, k.name, sum(requests), sum(errors), sum(fallbacks), sum(input), sum(cached), sum(written),
                   sum(output), sum(reasoning), sum(cost), sum(unpriced), sum(latency_ms), sum(latency_classes), sum(ttft_classes)
            FROM providerd.%I s, LATERAL (VALUES ('all', ''), ('provider', s.provider), ('model', s.provider || '/' || s.model),
                                                 ('consumer', s.consumer), ('level', s.power_level)) k (kind, name)
            GROUP BY 1, 2, 3, 4 ON CONFLICT DO NOTHING
        $sql$, 'usage_series_' || span, 'usage_' || span);
    END LOOP;
END $$;
