-- Views with fixed names, so that nobody reads a table without FINAL. Columns are only ever added.

-- v_usage: the ledger, one row an event.
CREATE VIEW IF NOT EXISTS {database}.v_usage{on_cluster} AS
SELECT * FROM {database}.ledger FINAL;

-- v_windows: minute windows, their segments summed.
CREATE VIEW IF NOT EXISTS {database}.v_windows{on_cluster} AS
SELECT
  tenant_id, account_id, subscriber_id, provider, model, window_start,
  sum(toInt128(w.events)) AS events,
  sum(toInt128(w.input_tokens)) AS input_tokens,
  sum(toInt128(w.cache_read_tokens)) AS cache_read_tokens,
  sum(toInt128(w.cache_write_tokens)) AS cache_write_tokens,
  sum(toInt128(w.cache_write_1h_tokens)) AS cache_write_1h_tokens,
  sum(toInt128(w.output_tokens)) AS output_tokens,
  sum(toInt128(w.reasoning_tokens)) AS reasoning_tokens,
  sum(toInt128(w.audio_input_tokens)) AS audio_input_tokens,
  sum(toInt128(w.audio_output_tokens)) AS audio_output_tokens,
  sum(toInt128(w.image_input_tokens)) AS image_input_tokens,
  sum(toInt128(w.image_output_tokens)) AS image_output_tokens,
  sum(toInt128(w.total_tokens)) AS total_tokens,
  max(w.version) AS version
FROM {database}.windows AS w FINAL
WHERE grain = 'minute'
GROUP BY tenant_id, account_id, subscriber_id, provider, model, window_start;

-- v_month_counters: the real-time counter of each account and month of its zone; window_start is
--   the month's first moment there.
CREATE VIEW IF NOT EXISTS {database}.v_month_counters{on_cluster} AS
SELECT tenant_id, account_id, window_start, events, total_tokens, version
FROM {database}.windows FINAL
WHERE grain = 'month';

-- v_decisions: every verdict.
CREATE VIEW IF NOT EXISTS {database}.v_decisions{on_cluster} AS
SELECT * FROM {database}.decisions FINAL;

-- v_dead_letters: every record that could not be used.
CREATE VIEW IF NOT EXISTS {database}.v_dead_letters{on_cluster} AS
SELECT * FROM {database}.dead_letters FINAL;

-- v_quarantine: every record that a topic of ours cannot hold.
CREATE VIEW IF NOT EXISTS {database}.v_quarantine{on_cluster} AS
SELECT * FROM {database}.quarantine FINAL;

-- v_accounts: the newest command of each account that charging accepted.
CREATE VIEW IF NOT EXISTS {database}.v_accounts{on_cluster} AS
SELECT * FROM {database}.accounts FINAL
WHERE (topic, partition, offset) NOT IN (SELECT topic, partition, offset FROM {database}.dead_letters WHERE topic IN (SELECT topic FROM {database}.accounts))
ORDER BY tenant_id, account_id, offset DESC
LIMIT 1 BY tenant_id, account_id;

-- v_seals: which offsets have landed, and the chain of digests over their rows.
CREATE VIEW IF NOT EXISTS {database}.v_seals{on_cluster} AS
SELECT * FROM {database}.seals FINAL;
