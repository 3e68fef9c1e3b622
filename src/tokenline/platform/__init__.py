"""Run the embedded line: a real broker, a real warehouse and both workers on one machine.

Owns processes, ports, pid files and the jars' cache. It is not a deployment for production
(one broker, one copy of the data): there, Kafka and ClickHouse are reached by settings alone.
Everything listens on loopback, and every process ends with the one that started it.
"""
