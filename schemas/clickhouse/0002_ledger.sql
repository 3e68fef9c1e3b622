-- One row per event identity (source, event_id): what was used, as it was charged. Statements and
--   audits read this table.
--
-- ORDER BY (tenant_id, account_id, occurred_at, source, event_id): a statement reads one account
--   over a period, so its rows lie together; tenant first, because books of one operator are
--   never read with another's. Identity is last in the key, so a second copy of an event meets
--   the first in a merge (and in FINAL) and only one is kept.
-- ENGINE Replacing by rank: rank falls as the offset rises, so the copy with the LOWEST offset
--   wins. That is the copy that charging counted; a later copy can never take its place.
-- PARTITION BY month of occurred_at: Replacing works inside one partition only, so the partition
--   must follow from the event alone, never from its arrival. It is also the unit in which old
--   months are dropped.
-- No TTL: evidence is dropped by a person, not by a clock. Where the law allows it: ALTER TABLE ...
--   MODIFY TTL toDateTime(occurred_at) + INTERVAL 25 MONTH, and likewise on duplicates, windows
--   and dead_letters, because reconcile compares them.
-- non_replicated_deduplication_window = 0: a deduplication log would silently drop rows after a
--   crash between log and rename.
-- fsync_*: offsets are committed to Kafka once the insert returns, so by then the rows must survive
--   a power loss.
-- No column says when a row landed: a row landed twice is the same row to the bit, so seals can be
--   recomputed.
-- No codecs: measured, they save nothing here (half of a row is its id) and cost a tenth of the
--   insert. The index on offset is for landing, which asks what lies above its last seal.
-- total_tokens is the sum over the kinds, stored because every check adds it up.

CREATE TABLE IF NOT EXISTS {database}.ledger{on_cluster} (
  tenant_id LowCardinality(String),
  source LowCardinality(String),
  event_id String,
  request_id String,
  attempt Int64,
  account_id String,
  subscriber_id String,
  gateway_id LowCardinality(String),
  gateway_version LowCardinality(String),
  gateway_epoch LowCardinality(String),
  gateway_seq Int64,
  home_domain LowCardinality(String),
  serving_domain LowCardinality(String),
  provider LowCardinality(String),
  model_requested LowCardinality(String),
  model LowCardinality(String),
  operation LowCardinality(String),
  occurred_at DateTime64(3, 'UTC'),
  started_at DateTime64(3, 'UTC'),
  input_tokens UInt64,
  cache_read_tokens UInt64,
  cache_write_tokens UInt64,
  cache_write_1h_tokens UInt64,
  output_tokens UInt64,
  reasoning_tokens UInt64,
  audio_input_tokens UInt64,
  audio_output_tokens UInt64,
  image_input_tokens UInt64,
  image_output_tokens UInt64,
  other_units Map(String, Int64),
  usage_source LowCardinality(String),
  outcome LowCardinality(String),
  hold_id String,
  corrects String,
  tags Map(String, String),
  topic LowCardinality(String),
  partition UInt32,
  offset UInt64,
  appended_at DateTime64(3, 'UTC'),
  late UInt8,
  total_tokens UInt64,
  rank UInt64 MATERIALIZED bitNot(offset),
  INDEX ix_offset offset TYPE minmax GRANULARITY 1
)
ENGINE = {engine ReplacingMergeTree(rank)}
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, account_id, occurred_at, source, event_id)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
