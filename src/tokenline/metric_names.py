"""Name every metric once: its kind, its unit, and what an operator does about it."""

from __future__ import annotations

# counter, records by judgement: a jump of `duplicate` means a gateway re-sends; of `late`, one that was away.
EVENTS = "tokenline_events_total"
# counter, tokens: compare with the ledger; a difference is a case for `tokenline reconcile`.
TOKENS = "tokenline_tokens_total"
# counter, records by reason: look at v_dead_letters, mend the gateway, send the events again.
DEAD_LETTERS = "tokenline_dead_letters_total"
# counter, bad records beyond TOKENLINE_BAD_RECORDS_PER_MINUTE: `grouped_by` of v_dead_letters names who sends them.
GROUPED_BAD = "tokenline_grouped_bad_records_total"
# counter, accounts whose unpaid usage passed 10^17 utok: look at v_balances below bucket 1 and at what sends it.
UNPAID_ALARMS = "tokenline_unpaid_alarms_total"
# counter, decisions by state: many `cut` at once usually means a wrong accounts file.
DECISIONS = "tokenline_decisions_total"
# histogram, seconds from broker append to published step: above 0.1 add workers or look at the broker.
DECISION_LATENCY = "tokenline_decision_latency_seconds"
# gauge, records behind the end by topic and partition: growing means too few workers.
LAG = "tokenline_lag_records"
# gauge, offset by topic and partition: the first record not yet done; standing still with lag is a stall.
NEXT_OFFSET = "tokenline_next_offset"
# counter, records by topic: retention or an operator deleted them before charging read them; reconcile says when.
DELETED = "tokenline_deleted_records_total"
# counter, records by topic that only our workers write and that are not theirs: find out who writes there.
IGNORED = "tokenline_ignored_records_total"
# gauge by partition, 1 while a journal's or a seal's position cannot be one of its topic: was it made again?
ASTRAY = "tokenline_astray"
# gauge, seconds: age of the newest record charged when it was published.
FRESHNESS = "tokenline_freshness_seconds"
# gauge, accounts held in memory by this worker: about 900 bytes each.
STATE_ROWS = "tokenline_state_rows"
# counter, rows read back from the journal at starts and rebalances.
RECOVERY_ROWS = "tokenline_recovery_rows_total"
# gauge, seconds from the first partition's start of recovery to the last one's end: rows / seconds is the speed.
RECOVERY_SPAN = "tokenline_recovery_span_seconds"
# counter, window rows published.
FLUSHED_ROWS = "tokenline_flushed_rows_total"
# counter, webhooks by endpoint and outcome (delivered, failed attempt, dead): many `failed` mean a receiver is away.
WEBHOOKS = "tokenline_webhooks_total"
# gauge, webhooks in hand that are not told yet, by endpoint: at 10,000 it reads no further until some are.
WEBHOOKS_WAITING = "tokenline_webhooks_waiting"
# gauge, 0 once an endpoint answered 410: mend it and restart the worker; what it missed are dead letters.
WEBHOOK_ENDPOINT_UP = "tokenline_webhook_endpoint_up"
# counter, rows put into ClickHouse by table.
LANDED_ROWS = "tokenline_landed_rows_total"
# counter, inserts by table: rows / batches below 1,000 under load means landing_max_wait_ms is too short.
LANDED_BATCHES = "tokenline_landed_batches_total"
# counter, records of our own topics that are not ours, by topic: look at v_quarantine, find out who writes there.
QUARANTINED = "tokenline_quarantined_total"
# counter, usage offsets by class: `unlanded` was charged and is gone, `unjudged` has no charged range; see the seals.
NOT_LANDED = "tokenline_not_landed_total"
# gauge, 1 while ClickHouse answers: 0 means landing waits; cut-offs go on.
WAREHOUSE_UP = "tokenline_warehouse_up"
