-- One row per record of the usage topic that repeats an event of the ledger: proof that the copy
--   was seen and not billed.
--
-- ORDER BY (tenant_id, topic, partition, offset): the record is the identity; the same event may
--   be repeated many times.
-- PARTITION BY month of appended_at: fixed by the record (broker append time), so a row landed
--   twice meets itself.
-- reason: copy (the event came before), corrected (a correction of it came before), already_corrected (it
--   corrects what another correction has replaced).
-- No TTL, as the ledger.
-- ENGINE Replacing without version: a row landed twice is the same row.

CREATE TABLE IF NOT EXISTS {database}.duplicates{on_cluster} (
  tenant_id LowCardinality(String),
  account_id String,
  source LowCardinality(String),
  event_id String,
  gateway_id LowCardinality(String),
  gateway_epoch LowCardinality(String),
  gateway_seq Int64,
  topic LowCardinality(String),
  partition UInt32,
  offset UInt64,
  appended_at DateTime64(3, 'UTC'),
  late UInt8,
  reason LowCardinality(String)
)
ENGINE = {engine ReplacingMergeTree()}
PARTITION BY toYYYYMM(appended_at)
ORDER BY (tenant_id, topic, partition, offset)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
