-- Each record the line could not use, with its raw bytes (base64, as on the wire) and the reason,
--   so that it can be looked at and sent again. Beyond the operator's rate of a group
--   (TOKENLINE_BAD_RECORDS_PER_MINUTE) a row is of many: `records` of them, at the runs of `offsets`
--   (first, last, first, last), with no bytes; those are in Kafka for as long as its retention says.
--
-- ORDER BY (tenant_id, topic, partition, offset): the record is the identity. tenant_id is empty
--   where it could not be read.
-- ENGINE Replacing without version: a letter published again after a crash is the same letter.
-- PARTITION BY month of appended_at (fixed by the record). No TTL, as the ledger.

CREATE TABLE IF NOT EXISTS {database}.dead_letters{on_cluster} (
  topic LowCardinality(String),
  partition UInt32,
  offset UInt64,
  reason LowCardinality(String),
  detail String CODEC(ZSTD(3)),
  tenant_id LowCardinality(String),
  account_id String,
  source String,
  event_id String,
  gateway_id String,
  gateway_epoch String,
  gateway_seq Int64,
  appended_at DateTime64(3, 'UTC'),
  key_base64 String CODEC(ZSTD(3)),
  value_base64 String CODEC(ZSTD(3)),
  records UInt64 DEFAULT 1,
  grouped_by String,
  offsets Array(UInt64) CODEC(ZSTD(3)),
  gateway_seqs Array(Int64) CODEC(ZSTD(3))
)
ENGINE = {engine ReplacingMergeTree()}
PARTITION BY toYYYYMM(appended_at)
ORDER BY (tenant_id, topic, partition, offset)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;

-- Each record that a topic of ours holds and cannot hold: nothing but our workers writes decisions,
--   windows, balances, charged, dead-letters and control, and this is not theirs, or it is broken.
--   With its raw bytes (base64) and the reason. It is in no other table; `tokenline reconcile` names
--   it, because what it should have said may be missing.
--
-- ORDER BY (topic, partition, offset): the record is the identity; whose it is cannot be known.
-- ENGINE Replacing without version: a record put aside twice is the same row.
-- PARTITION BY month of at (broker append time, fixed by the record). No TTL.

CREATE TABLE IF NOT EXISTS {database}.quarantine{on_cluster} (
  topic LowCardinality(String),
  partition UInt32,
  offset UInt64,
  at DateTime64(3, 'UTC'),
  reason LowCardinality(String),
  detail String CODEC(ZSTD(3)),
  key_base64 String CODEC(ZSTD(3)),
  value_base64 String CODEC(ZSTD(3))
)
ENGINE = {engine ReplacingMergeTree()}
PARTITION BY toYYYYMM(at)
ORDER BY (topic, partition, offset)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
