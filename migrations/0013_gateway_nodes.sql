-- Gateways that are alive, so that they divide limits between them. It is written every few seconds and means nothing
-- after a crash of the server: it needs no log.
CREATE UNLOGGED TABLE IF NOT EXISTS providerd.gateway_node (
    node       uuid PRIMARY KEY,
    demand     bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE providerd.gateway_node IS
    'Gateways that are alive: how many requests a minute came under their limits of late, and until when they are believed to live.';
