"""Run commands as a shell does, against a line of paper."""

from __future__ import annotations

import signal
import sys

import pytest

from tokenline import cli
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.registry import open_registry

MILLION = 1_000_000


class PaperOrders:
    """Take orders as the line does, byte for byte, and answer each with `says`."""

    def __init__(self):
        self.codec = Codec(open_registry(Settings()))
        self.sent, self.settings_of, self.says, self.fails = [], [], {}, None

    def __call__(self, settings):
        self.settings_of.append(settings)
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        """Stop nothing."""

    async def order(self, account, *, tenant, command_id="", **fields):
        fields.pop("timeout_s", None)
        if self.fails:
            raise self.fails
        names = {"account_id": account, "tenant_id": tenant, "command_id": command_id}
        self.sent.append(self.codec.decode(self.codec.encode("account_order", names | fields))[1])
        plain = {"outcome": "done", "reason": "none", "as_of": 0, "cause_offset": 0}
        said = names | plain | {"reply_to": "me", "rest_utok": 7 * MILLION} | self.says
        return self.codec.decode(self.codec.encode("order_reply", said))[1]


def run_command(capsys, *words):
    """Run a command; return its exit code, stdout and the lines of stderr."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["tokenline", *words]
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err.splitlines()
