-- The hash-chained manifest of landed offset ranges: one row a batch, written after the batch's
--   rows are in.
--
-- digest is SHA256 over the batch's ledger rows in offset order; chain is SHA256 over the
--   previous chain, the digest, the bounds and the counts. A changed, added or removed ledger row
--   breaks a digest; a removed or changed seal breaks the chain. counted + late + duplicate +
--   rejected + absent + deleted + unlanded + unjudged = hi - lo + 1.
-- digest is over the rows of the ledger, copies_digest over those of duplicates.
-- absent: offsets without a record (markers of transactions, compaction). deleted: gone before
--   charging read them, appended between deleted_since and deleted_until as far as is known (the
--   epoch when nothing was deleted). unlanded: charged, but gone or unreadable before they landed.
--   unjudged: no charged range speaks of them. The last three are losses: `tokenline reconcile`
--   names them.
-- ORDER BY (topic, partition, lo, writer_epoch): seals of a writer that lost its partition stay
--   beside those of its successor. The walk from lo to hi + 1 takes the highest writer_epoch at
--   each step, so the successor's chain is the one that counts.
-- ENGINE Replacing without version: a seal sent twice is the same seal. No PARTITION, no TTL:
--   evidence. Hashes are hex text, for people.
-- A topic partition holds events of many tenants, so tenant_id is not in the key.

CREATE TABLE IF NOT EXISTS {database}.seals{on_cluster} (
  topic LowCardinality(String),
  partition UInt32,
  lo UInt64,
  hi UInt64,
  counted UInt64,
  late UInt64,
  duplicate UInt64,
  rejected UInt64,
  absent UInt64,
  deleted UInt64,
  unlanded UInt64,
  unjudged UInt64,
  tokens UInt64,
  digest String,
  copies_digest String,
  prev String,
  chain String,
  writer_epoch UInt64,
  deleted_since DateTime64(3, 'UTC'),
  deleted_until DateTime64(3, 'UTC'),
  as_of DateTime64(3, 'UTC'),
  landed_at DateTime64(3, 'UTC')
)
ENGINE = {engine ReplacingMergeTree()}
ORDER BY (topic, partition, lo, writer_epoch)
SETTINGS non_replicated_deduplication_window = 0, fsync_after_insert = 1, fsync_part_directory = 1;
