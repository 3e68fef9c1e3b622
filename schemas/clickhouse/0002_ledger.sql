-- One row per event that was charged: what was used, what it was charged, by which catalog, and which
--   buckets paid. Statements and audits read this table.
--
-- ORDER BY (tenant_id, account_id, source, event_id, offset): tenant first, because books of one operator
--   are never read with another's; then the account, so its rows lie together; then the identity within
--   it, without a time, so that a copy that says another moment lies beside the first, and landing finds
--   it there. offset is last: two records are two rows, also where charging counted an event twice (a
--   copy with a new time, sent after the horizon): what was charged must be seen, v_shared_identities
--   names it, and a correction takes it back. A late copy is found by landing and never comes here.
-- ENGINE Replacing without version: a row landed twice is the same row.
-- PARTITION BY month of occurred_at: a statement reads an account's month, and so one partition, in which
--   the key leads to the account (measured: 60,000 rows of one account among a million, 4 ms). A row
--   that landed twice meets itself: its month is its own. It is also the unit in which old months are
--   dropped.
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
--   insert. The index on offset is for landing, which asks what lies above its last seal; that on
--   corrects passes over what has no corrections, nearly everything.
-- judgement: counted, late or correction. A correction was held back when its range was charged: its
--   charge here is 0, v_usage_net has what it came to. paid_buckets and paid_utok belong together; what no
--   bucket paid is 0 (overage), -1 (written off), -2 (late adjustment) or -3 (claim).
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
  judgement LowCardinality(String),
  charge_utok Int64,
  catalog_version UInt64,
  paid_buckets Array(Int64),
  paid_utok Array(Int64),
  INDEX ix_offset offset TYPE minmax GRANULARITY 1,
  INDEX ix_corrects corrects TYPE minmax GRANULARITY 1
)
ENGINE = {engine ReplacingMergeTree()}
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, account_id, source, event_id, offset)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
