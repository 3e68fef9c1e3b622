-- The database and the memory of what was applied to it. The runner executes this file first on
--   every run.
--
-- ENGINE Replacing by version: a statement is recorded as started, then as done; the newer row
--   wins, so a run that was killed in between leaves "started" and the next run repeats that
--   statement (each one is IF NOT EXISTS).
-- ORDER BY (file, statement): one row a statement. No PARTITION, no TTL: a few hundred rows for
--   ever.

CREATE DATABASE IF NOT EXISTS {database}{on_cluster};

CREATE TABLE IF NOT EXISTS {database}.schema_migrations{on_cluster} (
  file UInt32,
  statement UInt32,
  name String,
  checksum FixedString(64),
  status LowCardinality(String),
  version UInt64,
  at DateTime64(3, 'UTC')
)
ENGINE = {engine ReplacingMergeTree(version)}
ORDER BY (file, statement);
