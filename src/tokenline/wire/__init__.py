"""Carry records between processes: Avro in Confluent frames, over Kafka.

Read in this order: `registry` (which schema has which id), `avro` (one record), `columns` (many
records, workers only), `evolution` (what a schema may become), `topics` (what is where, under which
key), `emitter` (what a gateway calls) with `outbox` (what it keeps) and `delivery` (how it sends),
`guard` (what a gateway asks) with `view` (what it knows).

Nothing here decides what usage means. A frame is 0x00, a 4-byte big-endian schema id, one datum.
"""
