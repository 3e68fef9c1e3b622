"""Be what a gateway process embeds: admit calls from leases in hand, and emit what they used.

    prices -> lease -> waiting -> desk -> keeper -> call -> Gateway

`lease` is pure bookkeeping; `desk` asks the line through a function it is handed; only `gateway`
knows Kafka.
"""
