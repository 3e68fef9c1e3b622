-- What caused an entry of a balance: where its bucket came from, which order, who the other account of a
--   transfer is and which of the giver's entries it answers, and the catalog then in force.
--
-- Entries from before say nothing and 0. No transfer was possible then.

ALTER TABLE {database}.balance_changes{on_cluster} ADD COLUMN IF NOT EXISTS source LowCardinality(String);

ALTER TABLE {database}.balance_changes{on_cluster} ADD COLUMN IF NOT EXISTS command_id String;

ALTER TABLE {database}.balance_changes{on_cluster} ADD COLUMN IF NOT EXISTS counterpart String;

ALTER TABLE {database}.balance_changes{on_cluster} ADD COLUMN IF NOT EXISTS giver_entry UInt64;

ALTER TABLE {database}.balance_changes{on_cluster} ADD COLUMN IF NOT EXISTS catalog_version UInt64;

-- v_balance_changes: every entry. Made anew: a view keeps the columns that there were.
CREATE OR REPLACE VIEW {database}.v_balance_changes{on_cluster} AS
SELECT * FROM {database}.balance_changes FINAL;

-- v_balances: what the entries of each bucket come to, and where it came from. Below 1 stands what no bucket
--   paid, by its name.
CREATE OR REPLACE VIEW {database}.v_balances{on_cluster} AS
SELECT
  tenant_id, account_id, bucket,
  multiIf(
    bucket = 0, 'overage', bucket = -1, 'written_off', bucket = -2, 'late_adjustment', bucket = -3, 'claim',
    anyIf(b.source, b.source != '')
  ) AS source,
  sumIf(toInt128(b.amount_utok), kind = 'grant') AS granted_utok,
  -sumIf(toInt128(b.amount_utok), kind IN ('usage', 'hold_charge', 'hold_refund', 'claim_paid', 'claim_lost')) AS used_utok,
  sumIf(toInt128(b.amount_utok), kind NOT IN ('grant', 'usage', 'hold_charge', 'hold_refund', 'claim_paid', 'claim_lost')) AS other_utok,
  sum(toInt128(b.amount_utok)) AS balance_utok,
  max(b.at) AS changed_at
FROM {database}.balance_changes AS b FINAL
GROUP BY tenant_id, account_id, bucket;

-- v_transfers: every part of a transfer, by the giver's entry, and what became of it: taken by the
--   receiver, returned to the giver, or neither yet, which is on the way. More taken and returned than
--   given would be units from nowhere; `tokenline reconcile` fails on it.
CREATE VIEW IF NOT EXISTS {database}.v_transfers{on_cluster} AS
SELECT
  tenant_id,
  if(t.kind = 'transfer_in', t.counterpart, t.account_id) AS giver,
  if(t.kind = 'transfer_out', toUInt64OrZero(t.entry), t.giver_entry) AS part,
  anyIf(t.counterpart, t.kind = 'transfer_out') AS receiver,
  anyIf(t.command_id, t.kind = 'transfer_out') AS command_id,
  -sumIf(toInt128(t.amount_utok), t.kind = 'transfer_out') AS given_utok,
  sumIf(toInt128(t.amount_utok), t.kind = 'transfer_in') AS taken_utok,
  sumIf(toInt128(t.amount_utok), t.kind = 'transfer_return') AS returned_utok,
  given_utok - taken_utok - returned_utok AS on_the_way_utok,
  max(t.at) AS changed_at
FROM {database}.balance_changes AS t FINAL
WHERE t.kind IN ('transfer_out', 'transfer_in', 'transfer_return')
GROUP BY tenant_id, giver, part;
