-- The plan an account had when it was decided on; a gateway charges its calls by it.
--
-- Rows from before say nothing: then no account that was decided on named its plan.

ALTER TABLE {database}.decisions{on_cluster} ADD COLUMN IF NOT EXISTS plan LowCardinality(String);

-- v_decisions: every verdict.
CREATE OR REPLACE VIEW {database}.v_decisions{on_cluster} AS
SELECT * FROM {database}.decisions FINAL;
