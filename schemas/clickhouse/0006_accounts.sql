-- Every command that set what an account may use, kept for ever: an auditor asks what the limit
--   WAS. v_accounts shows the newest.
--
-- ORDER BY (tenant_id, account_id, offset): commands of one account share a partition, so the
--   offset is their order.
-- ENGINE Replacing without version: a row landed twice is the same row. No PARTITION (few rows),
--   no TTL.
-- A command that charging refused is here too and in dead_letters; v_accounts leaves it out.

CREATE TABLE IF NOT EXISTS {database}.accounts{on_cluster} (
  tenant_id LowCardinality(String),
  account_id String,
  command_id String,
  plan LowCardinality(String),
  time_zone LowCardinality(String),
  month_tokens Int64,
  minute_tokens Int64,
  hour_tokens Int64,
  day_tokens Int64,
  minute_requests Int64,
  hour_requests Int64,
  day_requests Int64,
  issued_at DateTime64(3, 'UTC'),
  topic LowCardinality(String),
  partition UInt32,
  offset UInt64,
  appended_at DateTime64(3, 'UTC')
)
ENGINE = {engine ReplacingMergeTree()}
ORDER BY (tenant_id, account_id, offset)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
