-- Parts of the ledger below 128 MB (uncompressed) keep all their columns in one file.
--
-- Why: a part with a file a column is 90 files, each made and synced to disk: half of what an insert
--   of 50,000 rows costs. Merges write the larger parts that follow with a file a column again, so
--   reads of a few columns stay cheap where there is much to read.
-- A part is whole or not there either way: the rename that makes it so is the same.

ALTER TABLE {database}.ledger{on_cluster} MODIFY SETTING min_bytes_for_wide_part = 134217728;
