"""Play a believable day of a carrier's token line in half a minute, on real parts.

It owns: sample accounts, the load, the live view and the summary. It is not a benchmark (see
`tokenline bench`); gateways here think, stream and misbehave at human speed.
"""
