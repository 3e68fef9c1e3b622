"""Carry records between processes: Avro in Confluent frames, over Kafka.

Read in this order: `registry` (which schema has which id), `avro` (one record), `columns` (many
records, workers only), `topics` (what is where, under which key), `outbox` and `emitter` (how a
gateway hands over usage), `view` and `guard` (how a gateway learns what it may do).

Nothing here decides what usage means. A frame is 0x00, a 4-byte big-endian schema id, one datum.
"""
