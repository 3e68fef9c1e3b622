"""Say which accounts exist and what each may use: a plain TOML file, published as commands.

It owns: the file and its checks, and the wait until charging has taken it in. It is not: billing
data. Applying a file twice changes nothing; what a file does not name stays as it is.
"""
