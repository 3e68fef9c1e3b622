-- The ledger of every balance: each entry says why a bucket changed and by how much. Evidence: entries
--   are never edited, and a correction is an entry of its own.
--
-- ORDER BY (tenant_id, account_id, bucket, entry): an entry has one name; an account's are read
--   together, bucket by bucket.
-- ENGINE Replacing by version: what usage took from a bucket in a minute grows until the minute is over,
--   and its version with it; all other entries are published again word for word.
-- PARTITION BY month of at (broker time, fixed by the entry). No TTL.

CREATE TABLE IF NOT EXISTS {database}.balance_changes{on_cluster} (
  tenant_id LowCardinality(String),
  account_id String,
  bucket UInt64,
  entry String,
  kind LowCardinality(String),
  amount_utok Int64,
  at DateTime64(3, 'UTC'),
  version UInt64,
  partition UInt32
)
ENGINE = {engine ReplacingMergeTree(version)}
PARTITION BY toYYYYMM(at)
ORDER BY (tenant_id, account_id, bucket, entry)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;

-- v_balance_changes: every entry.
CREATE VIEW IF NOT EXISTS {database}.v_balance_changes{on_cluster} AS
SELECT * FROM {database}.balance_changes FINAL;

-- v_balances: what the entries of each bucket come to. Bucket 0 is what no bucket covered: overage, or
--   what the house wrote off; it has no grants, and its balance is below zero by what was used.
CREATE VIEW IF NOT EXISTS {database}.v_balances{on_cluster} AS
SELECT
  tenant_id, account_id, bucket,
  sumIf(b.amount_utok, kind = 'grant') AS granted_utok,
  -sumIf(b.amount_utok, kind IN ('usage', 'hold_charge', 'hold_refund')) AS used_utok,
  sumIf(b.amount_utok, kind NOT IN ('grant', 'usage', 'hold_charge', 'hold_refund')) AS other_utok,
  sum(b.amount_utok) AS balance_utok,
  max(b.at) AS changed_at
FROM {database}.balance_changes AS b FINAL
GROUP BY tenant_id, account_id, bucket;
