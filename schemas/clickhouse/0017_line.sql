-- Which line's rows this database holds: the same id is in Kafka, in each journal and in each outbox.
--
-- A database holds one line; whoever lands compares before the first row. A line that goes on from a
--   Kafka that was lost has a database of its own, and this one stays as it is.
-- ORDER BY line_id: adopted twice is one row. No PARTITION, no TTL: one row for ever.

CREATE TABLE IF NOT EXISTS {database}.line{on_cluster} (
  line_id String,
  made_at DateTime64(3, 'UTC'),
  adopted_at DateTime64(3, 'UTC')
)
ENGINE = {engine ReplacingMergeTree()}
ORDER BY line_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE VIEW IF NOT EXISTS {database}.v_line{on_cluster} AS
SELECT line_id, made_at, adopted_at FROM {database}.line FINAL;
