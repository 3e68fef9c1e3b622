-- Absolute totals as charging holds them, never deltas: minute segments, and the month counter of
--   each account.
--
-- ORDER BY (tenant_id, account_id, grain, window_start, ...): charts and checks read one account
--   over time. segment_start is in the key because a minute window is the SUM of its segments:
--   v_windows adds them up.
-- ENGINE Replacing by version: version is the usage offset of the last event counted, so the
--   highest is the newest total and a replay of an older row changes nothing.
-- PARTITION BY (grain, month of window_start): fixed by the window, so versions of one row always
--   meet.
-- cause is in the key because a total is never edited: what a correction changed is a row beside it, named
--   by its order, and below zero where it took something out. grain late is of late usage that was
--   corrected: it is in no window, and its row only says what was charged.
-- No TTL, as the ledger.

CREATE TABLE IF NOT EXISTS {database}.windows{on_cluster} (
  tenant_id LowCardinality(String),
  account_id String,
  subscriber_id String,
  provider LowCardinality(String),
  model LowCardinality(String),
  grain LowCardinality(String),
  window_start DateTime64(3, 'UTC'),
  segment_start DateTime64(3, 'UTC'),
  partition UInt32,
  events Int64,
  input_tokens Int64,
  cache_read_tokens Int64,
  cache_write_tokens Int64,
  cache_write_1h_tokens Int64,
  output_tokens Int64,
  reasoning_tokens Int64,
  audio_input_tokens Int64,
  audio_output_tokens Int64,
  image_input_tokens Int64,
  image_output_tokens Int64,
  total_tokens Int64,
  version UInt64,
  cause String,
  INDEX ix_cause cause TYPE minmax GRANULARITY 1
)
ENGINE = {engine ReplacingMergeTree(version)}
PARTITION BY (grain, toYYYYMM(window_start))
ORDER BY (tenant_id, account_id, grain, window_start, subscriber_id, provider, model, segment_start, cause)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
