-- Every verdict on an account, with what it was based on. Evidence: never changed, never dropped.
--
-- ORDER BY (tenant_id, account_id, subscriber_id, version): version is the position in the
--   account's decisions, from 1 without gaps, so a gap shows and the newest is the last row of
--   the account.
-- ENGINE Replacing by epoch: a decision published again by the next owner has the same version
--   and the same content.
-- covers: what can still be paid where not everything can; empty means everything, and nothing of an
--   account that is cut. The terms are those the account had.
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
  unit LowCardinality(String),
  overage_utok Int64,
  written_off_utok Int64,
  covers Array(Tuple(models Array(String), subscribers Array(String))),
  window_start DateTime64(3, 'UTC'),
  resets_at DateTime64(3, 'UTC'),
  version UInt64,
  epoch UInt64,
  as_of DateTime64(3, 'UTC'),
  cause_topic LowCardinality(String),
  cause_partition UInt32,
  cause_offset UInt64,
  terms_version UInt64,
  mode LowCardinality(String),
  unreachable LowCardinality(String),
  emergency_utok Int64,
  abort LowCardinality(String),
  longest_call_ms Int64,
  hold_validity_ms Int64,
  least_call_utok Int64,
  zero_rated_needs_balance UInt8
)
ENGINE = {engine ReplacingMergeTree(epoch)}
PARTITION BY toYYYYMM(as_of)
ORDER BY (tenant_id, account_id, subscriber_id, version)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
