"""Bring what was charged into the warehouse, and ask the warehouse about it.

Owns: the tables (`migrate`), rows as they are stored (`row`), batches (`batch`), the store and its
twin (`store`, `clickhouse`, `memory`), seals (`seal`), and the questions of the commands
(`queries`, `reconcile`). It is not: a judge of usage. Which events count was decided by charging;
landing follows those verdicts to the letter. Time: whole milliseconds, UTC, as the broker and the
gateways gave them. Tokens: integers. Nothing is rounded. Replays: every table keeps one row per key
under FINAL, whatever is landed twice; a seal is written after its rows, never before.
"""
