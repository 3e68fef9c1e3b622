-- Whether a verdict is about all models or about those of one limit's group alone.
--
-- Rows from before are about all models: there were no others.

ALTER TABLE {database}.decisions{on_cluster} ADD COLUMN IF NOT EXISTS model_group LowCardinality(String);
ALTER TABLE {database}.decisions{on_cluster} ADD COLUMN IF NOT EXISTS models Array(String);

-- v_decisions: every verdict.
CREATE OR REPLACE VIEW {database}.v_decisions{on_cluster} AS
SELECT * FROM {database}.decisions FINAL;
