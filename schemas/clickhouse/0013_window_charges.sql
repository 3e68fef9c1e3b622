-- What the usage of a window cost its account's balance, and by which version of the catalog.
--
-- Rows from before say 0: nothing was charged then.

ALTER TABLE {database}.windows{on_cluster} ADD COLUMN IF NOT EXISTS charge_utok UInt64;

ALTER TABLE {database}.windows{on_cluster} ADD COLUMN IF NOT EXISTS catalog_version UInt64;

-- v_windows: minute windows, their segments summed.
CREATE OR REPLACE VIEW {database}.v_windows{on_cluster} AS
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
  max(w.version) AS version,
  sum(toInt128(w.charge_utok)) AS charge_utok,
  max(w.catalog_version) AS catalog_version
FROM {database}.windows AS w FINAL
WHERE grain = 'minute'
GROUP BY tenant_id, account_id, subscriber_id, provider, model, window_start;
