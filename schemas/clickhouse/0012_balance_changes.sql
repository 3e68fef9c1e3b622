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
  bucket Int64,
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

-- v_balances: what the entries of each bucket come to. Below 1 stands what no bucket paid: 0 overage, which
--   the customer owes; -1 written off, which the house bears; -2 late adjustments, of closed cycles; -3
--   claims, which wait for units that are held. These have no grants, and a balance below zero.
CREATE VIEW IF NOT EXISTS {database}.v_balances{on_cluster} AS
SELECT
  tenant_id, account_id, bucket,
  sumIf(toInt128(b.amount_utok), kind = 'grant') AS granted_utok,
  -sumIf(toInt128(b.amount_utok), kind IN ('usage', 'hold_charge', 'hold_refund', 'claim_paid', 'claim_lost')) AS used_utok,
  sumIf(toInt128(b.amount_utok), kind NOT IN ('grant', 'usage', 'hold_charge', 'hold_refund', 'claim_paid', 'claim_lost')) AS other_utok,
  sum(toInt128(b.amount_utok)) AS balance_utok,
  max(b.at) AS changed_at
FROM {database}.balance_changes AS b FINAL
GROUP BY tenant_id, account_id, bucket;
