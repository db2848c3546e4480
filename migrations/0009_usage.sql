-- Usage: every word that a generation of programs has for a counter, kept equal whichever a writer sets; days as
-- partitions where the table is new; and what the shipper of usage remembers.

-- ------------------------------------------------------------------------------------------ llm_usage_logs
-- A table that was made a moment ago, by the migrations before this one, is made again: partitioned by day. One that
-- was there before stays what it is.
DO $$
BEGIN
    IF current_setting('providerd.fresh_usage', true) IS DISTINCT FROM 'on' THEN
        RETURN;
    END IF;
    DROP TABLE __SCHEMA__.llm_usage_logs;
    CREATE TABLE __SCHEMA__.llm_usage_logs (
        id                uuid NOT NULL DEFAULT gen_random_uuid(),
        user_id           varchar(255),
        provider_id       uuid REFERENCES __SCHEMA__.llm_providers (id) ON DELETE SET NULL,
        model_id          uuid REFERENCES __SCHEMA__.llm_models (id) ON DELETE SET NULL,
        model_name        varchar(255),
        request_id        varchar(255),
        power_level       varchar(50),
        prompt_tokens     integer,
        completion_tokens integer,
        total_tokens      integer,
        cost_input_usd    numeric(20, 10),
        cost_output_usd   numeric(20, 10),
        cost_total_usd    numeric(20, 10),
        latency_ms        integer,
        status_code       integer,
        success           boolean DEFAULT true,
        error_message     text,
        was_fallback      boolean DEFAULT false,
        metadata          jsonb DEFAULT '{}',
        created_at        timestamp NOT NULL DEFAULT timezone('utc', now()),
        PRIMARY KEY (id, created_at)
    ) PARTITION BY RANGE (created_at);
    -- Takes what no day was made for, so that no insert ever fails over it.
    CREATE TABLE __SCHEMA__.llm_usage_logs_rest PARTITION OF __SCHEMA__.llm_usage_logs DEFAULT;
    CREATE INDEX llm_usage_logs_provider_providerd ON __SCHEMA__.llm_usage_logs (provider_id, created_at);
    CREATE INDEX llm_usage_logs_time_providerd ON __SCHEMA__.llm_usage_logs USING brin (created_at);
END $$;

ALTER TABLE __SCHEMA__.llm_usage_logs
    ADD COLUMN IF NOT EXISTS input_tokens    integer,
    ADD COLUMN IF NOT EXISTS request_tokens  integer,
    ADD COLUMN IF NOT EXISTS output_tokens   integer,
    ADD COLUMN IF NOT EXISTS response_tokens integer,
    ADD COLUMN IF NOT EXISTS cost            numeric(20, 10),
    ADD COLUMN IF NOT EXISTS status          varchar(20);

-- Deleting a model looks for its rows; without this it would read the whole log.
CREATE INDEX IF NOT EXISTS llm_usage_logs_model_providerd ON __SCHEMA__.llm_usage_logs (model_id) WHERE model_id IS NOT NULL;

-- Two columns of llm_models that a later generation's seeds name.
ALTER TABLE __SCHEMA__.llm_models
    ADD COLUMN IF NOT EXISTS quality_score numeric(3, 2),
    ADD COLUMN IF NOT EXISTS power_level   varchar(20) DEFAULT 'balanced';

-- For ON CONFLICT (name, type). Rows that share both are somebody's data, and stay.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = $name$__SCHEMA__.llm_providers$name$::regclass AND i.indisunique AND i.indpred IS NULL
        AND i.indexprs IS NULL AND i.indnkeyatts = 2
        AND ARRAY(SELECT a.attname::text FROM pg_attribute a
                  WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:1]) ORDER BY 1) = ARRAY['name', 'type'])
       AND NOT EXISTS (SELECT FROM __SCHEMA__.llm_providers GROUP BY name, type HAVING count(*) > 1)
    THEN
        CREATE UNIQUE INDEX IF NOT EXISTS llm_providers_name_type_providerd ON __SCHEMA__.llm_providers (name, type);
    END IF;
END $$;

-- Programs that find rules take the newest for the global strategy, so there must be one: with the values that they
-- would give it themselves on an empty table.
INSERT INTO __SCHEMA__.llm_routing_rules (strategy, fallback_providers, model_aliases, config, created_at, updated_at)
SELECT 'balanced', '{}', '{}',
       '{"cost_weight": 0.4, "latency_weight": 0.4, "quality_weight": 0.2, "max_retries": 3, "retry_delay_ms": 500}',
       x.newest + interval '1 microsecond', x.newest + interval '1 microsecond'
FROM (SELECT greatest(timezone('utc', now()), max(created_at), max(updated_at)) AS newest FROM __SCHEMA__.llm_routing_rules
      WHERE model_id IS NOT NULL HAVING count(*) > 0) x
WHERE NOT EXISTS (SELECT FROM __SCHEMA__.llm_routing_rules WHERE model_id IS NULL);

-- ------------------------------------------------------------------------------------------ mirroring
-- Makes the trigger that keeps the words of all generations equal, from the columns that there are now. Says whether
-- anything had to be made; where nothing has changed it only looks. The daemon calls it again and again, so that
-- columns which somebody adds, or drops and adds, are followed.
CREATE OR REPLACE FUNCTION providerd.mirror_usage() RETURNS boolean LANGUAGE plpgsql AS $make$
DECLARE
    target regclass := ($name$__SCHEMA__.llm_usage_logs$name$)::regclass;
    groups text[] := ARRAY['prompt_tokens,input_tokens,request_tokens', 'completion_tokens,output_tokens,response_tokens',
                           'cost_total_usd,cost'];
    one text;
    members text[];
    member text;
    value text;
    heads text[] := '{}';
    disagree text[] := '{}';
    body text := '';
    signature text;
    has_total boolean;
    has_status boolean;
BEGIN
    FOREACH one IN ARRAY groups LOOP
        SELECT coalesce(array_agg(w.name ORDER BY w.at), '{}') INTO members
            FROM unnest(string_to_array(one, ',')) WITH ORDINALITY AS w (name, at)
            JOIN pg_attribute a ON a.attrelid = target AND a.attname = w.name AND NOT a.attisdropped
            JOIN pg_type t ON t.oid = a.atttypid AND t.typcategory = 'N';
        heads := heads || coalesce(members[1], '');
        CONTINUE WHEN cardinality(members) < 2;
        -- A zero is what a table's default leaves where the writer knows another word.
        value := format('coalesce(%s, %s)',
            (SELECT string_agg(format('nullif(NEW.%I, 0)', m), ', ' ORDER BY at) FROM unnest(members) WITH ORDINALITY x (m, at)),
            (SELECT string_agg(format('NEW.%I', m), ', ' ORDER BY at) FROM unnest(members) WITH ORDINALITY x (m, at)));
        body := body || E'\n    kept := false;\n    IF TG_OP = ''INSERT'' THEN value := ' || value || '; kept := true;';
        FOREACH member IN ARRAY members LOOP
            body := body || format(E'\n    ELSIF NEW.%1$I IS DISTINCT FROM OLD.%1$I THEN value := NEW.%1$I; kept := true;', member);
        END LOOP;
        body := body || E'\n    ELSE value := ' || value || '; END IF;';
        FOREACH member IN ARRAY members LOOP
            body := body || format(
                E'\n    IF kept OR coalesce(NEW.%1$I, 0) = 0 THEN NEW.%1$I := %2$s; END IF;', member,
                CASE WHEN (SELECT attnotnull FROM pg_attribute WHERE attrelid = target AND attname = member)
                     THEN 'coalesce(value, 0)' ELSE 'value' END);
            IF member <> members[1] THEN
                disagree := disagree || format('NEW.%I IS DISTINCT FROM NEW.%I', members[1], member);
            END IF;
        END LOOP;
    END LOOP;
    has_total := heads[1] <> '' AND heads[2] <> '' AND EXISTS (
        SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid AND t.typcategory = 'N'
        WHERE a.attrelid = target AND a.attname = 'total_tokens' AND NOT a.attisdropped);
    IF has_total THEN
        body := body || format($line$
    IF coalesce(NEW.total_tokens, 0) = 0 AND (NEW.%1$I IS NOT NULL OR NEW.%2$I IS NOT NULL)
       OR TG_OP = 'UPDATE' AND NEW.total_tokens IS NOT DISTINCT FROM OLD.total_tokens
          AND (NEW.%1$I IS DISTINCT FROM OLD.%1$I OR NEW.%2$I IS DISTINCT FROM OLD.%2$I) THEN
        NEW.total_tokens := least(coalesce(NEW.%1$I, 0)::bigint + coalesce(NEW.%2$I, 0)::bigint, 2147483647);
    END IF;$line$, heads[1], heads[2]);
        disagree := disagree || format(
            'NEW.total_tokens IS DISTINCT FROM coalesce(NEW.%1$I, 0)::bigint + coalesce(NEW.%2$I, 0)::bigint', heads[1], heads[2]);
    END IF;
    SELECT count(*) = 2 INTO has_status FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = target AND NOT a.attisdropped
        AND (a.attname = 'status' AND t.typcategory = 'S' OR a.attname = 'success' AND t.typcategory = 'B');
    IF has_status THEN
        -- Defaults say "success": who says anything else means it.
        body := body || $line$
    IF TG_OP = 'UPDATE' AND NEW.success IS DISTINCT FROM OLD.success AND NEW.status IS NOT DISTINCT FROM OLD.status THEN
        NEW.status := CASE WHEN NEW.success IS FALSE THEN 'error' ELSE 'success' END;
    ELSIF TG_OP = 'UPDATE' AND NEW.status IS DISTINCT FROM OLD.status AND NEW.success IS NOT DISTINCT FROM OLD.success
          AND NEW.status IS NOT NULL THEN
        NEW.success := NEW.status = 'success';
    ELSIF NEW.status IS NULL OR NEW.status = 'success' AND NEW.success IS FALSE THEN
        NEW.success := NEW.success IS NOT FALSE;
        NEW.status := CASE WHEN NEW.success THEN 'success' ELSE 'error' END;
    ELSIF NEW.success IS NULL OR NEW.success AND lower(NEW.status) IN ('error', 'failed', 'failure', 'timeout') THEN
        NEW.success := NEW.status = 'success';
    END IF;$line$;
        disagree := disagree || ARRAY['(NEW.status = ''success'') IS DISTINCT FROM NEW.success'];
    END IF;
    signature := 'Keeps equal, by providerd: ' || md5(body || array_to_string(disagree, ' '));
    IF EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = target AND g.tgname = 'providerd_usage'
               AND obj_description(g.tgfoid, 'pg_proc') = signature) OR body = '' THEN
        RETURN false;
    END IF;
    EXECUTE 'CREATE OR REPLACE FUNCTION providerd.keep_usage() RETURNS trigger LANGUAGE plpgsql '
        || 'SET search_path TO pg_catalog, pg_temp AS $keep$ DECLARE value numeric; kept boolean; BEGIN'
        || body || E'\n    RETURN NEW;\nEND $keep$';
    EXECUTE format('COMMENT ON FUNCTION providerd.keep_usage() IS %L', signature);
    -- Rows that agree already, as the shipper's do, call nothing.
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER providerd_usage BEFORE INSERT OR UPDATE ON %s FOR EACH ROW WHEN (%s) '
        || 'EXECUTE FUNCTION providerd.keep_usage()', target, array_to_string(disagree, ' OR '));
    RETURN true;
END $make$;
SELECT providerd.mirror_usage();

-- ------------------------------------------------------------------------------------------ days
-- Makes the partitions from today to that many days ahead; nothing where the table is not partitioned by time. Says how
-- many it made. Rows that came before their day move into it.
CREATE OR REPLACE FUNCTION providerd.usage_days_ahead(days integer) RETURNS integer LANGUAGE plpgsql AS $make$
DECLARE
    schema text := $name$__SCHEMA__$name$;
    target regclass := (schema || '.llm_usage_logs')::regclass;
    rest regclass;
    today date := timezone('utc', clock_timestamp())::date;
    day date;
    part text;
    moved boolean;
    made integer := 0;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid
                   AND a.attnum = p.partattrs[0] AND a.attname = 'created_at'
                   WHERE p.partrelid = target AND p.partstrat = 'r') THEN
        RETURN 0;
    END IF;
    SELECT i.inhrelid::regclass INTO rest FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = target AND pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
    FOR day IN SELECT today + n FROM generate_series(0, days) n LOOP
        part := 'llm_usage_logs_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
                LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b,
                LATERAL (SELECT substring(b.bound FROM $q$FROM \('?([^')]+)'?\)$q$) AS lower,
                                substring(b.bound FROM $q$TO \('?([^')]+)'?\)$q$) AS upper) r
            WHERE i.inhparent = target AND b.bound <> 'DEFAULT'
            AND CASE WHEN r.lower = 'MINVALUE' THEN true ELSE r.lower::timestamp <= day END
            AND CASE WHEN r.upper = 'MAXVALUE' THEN true ELSE r.upper::timestamp > day END);
        moved := false;
        IF rest IS NOT NULL THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE created_at >= %L AND created_at < %L)', rest, day, day + 1)
                INTO moved;
        END IF;
        -- Attaching lets readers and writers of the other days go on.
        EXECUTE format('CREATE TABLE %s.%I (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', schema, part, target);
        IF moved THEN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', rest);
            EXECUTE format('WITH gone AS (DELETE FROM %s WHERE created_at >= %L AND created_at < %L RETURNING *)
                            INSERT INTO %s.%I SELECT * FROM gone', rest, day, day + 1, schema, part);
        END IF;
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s.%I FOR VALUES FROM (%L) TO (%L)',
                       target, schema, part, day, day + 1);
        made := made + 1;
    END LOOP;
    RETURN made;
END $make$;
SELECT providerd.usage_days_ahead(7);

-- ------------------------------------------------------------------------------------------ what the shipper remembers
CREATE TABLE IF NOT EXISTS providerd.usage_cursor (
    spool      uuid PRIMARY KEY,
    node       text NOT NULL,
    segment    bigint NOT NULL,
    position   bigint NOT NULL,
    shipped    bigint NOT NULL,
    rejected   bigint NOT NULL DEFAULT 0,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Sums by hour, by day, and by day and user. `at` is where the span begins.
CREATE TABLE IF NOT EXISTS providerd.usage_hourly (
    at          timestamptz NOT NULL,
    node        text NOT NULL,
    consumer    text NOT NULL,
    provider    text NOT NULL,
    model       text NOT NULL,
    power_level text NOT NULL,
    requests    bigint NOT NULL,
    errors      bigint NOT NULL,
    fallbacks   bigint NOT NULL,
    input       bigint NOT NULL,
    cached      bigint NOT NULL,
    written     bigint NOT NULL,
    output      bigint NOT NULL,
    reasoning   bigint NOT NULL,
    cost        numeric(24, 10) NOT NULL,
    unpriced    bigint NOT NULL,
    latency_ms  bigint NOT NULL,
    latency     bigint[] NOT NULL,
    ttft        bigint[] NOT NULL,
    PRIMARY KEY (at, node, consumer, provider, model, power_level)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS providerd.usage_daily (LIKE providerd.usage_hourly INCLUDING ALL) WITH (fillfactor = 70);
-- Without classes of latency: users are many, and what they wait for is their models.
CREATE TABLE IF NOT EXISTS providerd.usage_users (
    at          timestamptz NOT NULL,
    node        text NOT NULL,
    consumer    text NOT NULL,
    user_id     text NOT NULL,
    requests    bigint NOT NULL,
    errors      bigint NOT NULL,
    fallbacks   bigint NOT NULL,
    input       bigint NOT NULL,
    cached      bigint NOT NULL,
    written     bigint NOT NULL,
    output      bigint NOT NULL,
    reasoning   bigint NOT NULL,
    cost        numeric(24, 10) NOT NULL,
    unpriced    bigint NOT NULL,
    latency_ms  bigint NOT NULL,
    PRIMARY KEY (at, node, consumer, user_id)
) WITH (fillfactor = 70);

-- Models that have usage: asked before one is deleted. One row per model, written when it is first used.
CREATE TABLE IF NOT EXISTS providerd.usage_models (
    model_id uuid PRIMARY KEY,
    since    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- ------------------------------------------------------------------------------------------ budgets
-- Amounts are whole numbers of 1e-10 USD.
CREATE TABLE IF NOT EXISTS providerd.budget (
    budget       text NOT NULL,
    window_start timestamptz NOT NULL,
    spent        bigint NOT NULL DEFAULT 0,
    leased       bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (budget, window_start)
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS providerd.budget_lease (
    budget       text NOT NULL,
    window_start timestamptz NOT NULL,
    node         uuid NOT NULL,
    amount       bigint NOT NULL,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (budget, window_start, node)
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS budget_lease_expiry ON providerd.budget_lease (expires_at);
