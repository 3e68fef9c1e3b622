-- Every verdict on an account, with what it was based on. Evidence: never changed, never dropped.
--
-- ORDER BY (tenant_id, account_id, subscriber_id, version): version is the position in the
--   account's decisions, from 1 without gaps, so a gap shows and the newest is the last row of
--   the account.
-- ENGINE Replacing by epoch: a decision published again by the next owner has the same version
--   and the same content.
-- PARTITION BY month of as_of (broker time, fixed by the decision). No TTL.

CREATE TABLE IF NOT EXISTS {database}.decisions{on_cluster} (
  tenant_id LowCardinality(String),
  account_id String,
  subscriber_id String,
  state LowCardinality(String),
  rule LowCardinality(String),
  reason LowCardinality(String),
  threshold_percent Int32,
  used Int64,
  limit Int64,
  window_start DateTime64(3, 'UTC'),
  resets_at DateTime64(3, 'UTC'),
  version UInt64,
  epoch UInt64,
  as_of DateTime64(3, 'UTC'),
  cause_topic LowCardinality(String),
  cause_partition UInt32,
  cause_offset UInt64
)
ENGINE = {engine ReplacingMergeTree(epoch)}
PARTITION BY toYYYYMM(as_of)
ORDER BY (tenant_id, account_id, subscriber_id, version)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
