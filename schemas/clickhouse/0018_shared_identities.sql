-- v_shared_identities: event ids that the ledger has more than once, under several accounts or by copies that
--   charging could not know. All stand, and all are charged; a person says which is right, and a correction
--   takes the other back. It groups the whole ledger: ask seldom.
CREATE VIEW IF NOT EXISTS {database}.v_shared_identities{on_cluster} AS
SELECT
  tenant_id, source, event_id,
  groupUniqArray(l.account_id) AS accounts,
  count() AS events,
  sum(toInt128(l.charge_utok)) AS charge_utok,
  min(l.appended_at) AS first_at,
  max(l.appended_at) AS last_at
FROM {database}.ledger AS l FINAL
GROUP BY tenant_id, source, event_id
HAVING events > 1;
