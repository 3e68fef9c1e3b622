"""Tell receivers over HTTP what was decided on their accounts.

`notification` says which decision is worth telling, `signing` signs it and lets a receiver verify it,
`backoff` when to try again, `endpoints` who is told, `probe` tries a receiver out. Here is nothing of
Kafka or Faust, and nothing but `probe` speaks HTTP: a receiver imports `verify` without any of them.
"""

from __future__ import annotations

from tokenline.notify.signing import Secret, sign, verify

__all__ = ["Secret", "sign", "verify"]
