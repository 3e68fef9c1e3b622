"""Compare what the sides of the line say, in integers, and name every difference.

Owns: the equations. It is not: a reader of Kafka or ClickHouse (`tokenline.landing.reconcile` is)
nor a mender of anything: it changes no row and waits for nothing.
"""
