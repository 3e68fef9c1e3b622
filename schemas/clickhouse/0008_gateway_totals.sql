-- Control total of each life of each gateway: what the line must show in ledger, duplicates or
--   dead letters.
--
-- ORDER BY (gateway_id, gateway_epoch): one row a life; a gateway serves many tenants, so
--   tenant_id is not in it.
-- ENGINE Replacing by version: version is the offset in the control topic, the newest total wins.
--   No PARTITION, no TTL: few rows.

CREATE TABLE IF NOT EXISTS {database}.gateway_totals{on_cluster} (
  gateway_id String,
  gateway_epoch String,
  source LowCardinality(String),
  emitted UInt64,
  acknowledged UInt64,
  lost UInt64,
  as_of DateTime64(3, 'UTC'),
  line_id String,
  version UInt64
)
ENGINE = {engine ReplacingMergeTree(version)}
ORDER BY (gateway_id, gateway_epoch)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
