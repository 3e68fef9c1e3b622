"""What the README tells people to type works, as it is written there."""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenline import cli
from tokenline.errors import NotRunning
from tokenline.landing.queries import Asker
from tokenline.notify import Secret
from tokenline.notify.endpoints import Endpoint
from tokenline.notify.probe import probe
from tokenline.platform.processes import wait_for
from tokenline.platform.stack import find_stack, status

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command, cwd, timeout=120, env=None):
    """Run one README line; `uv run X` becomes X of this environment, which `uv run pytest` has made."""
    words = command.removeprefix("uv run ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        words, shell=True, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "PATH": path, **(env or {})},
    )  # fmt: skip


def test_set_up_takes_two_commands():
    commands = [block.strip() for block in blocks("sh")]

    assert "pip install uv && uv run tokenline demo" in commands
    assert "uv run pytest" in commands


def test_every_command_is_in_the_readme_and_has_an_example():
    help_text = run("tokenline --help", ROOT).stdout
    assert "Example: tokenline up" in run("tokenline up --help", ROOT).stdout
    names = re.findall(r"^  ([a-z]+) {2,}", help_text.split("Commands:")[1], re.MULTILINE)

    assert len(names) > 10
    for name in names:
        assert (
            f"tokenline {name}" in README or f"`worker {name}" in README or f"/ `{name}`" in README
        ), name
        text = told(name, "--help")
        assert "Example:" in text or "Commands:" in text, name


def told(*arguments):
    """Return what the command prints, in this process: a process for each costs a second."""
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, arguments
    return done.stdout


def test_the_gateway_example_compiles_and_names_real_things():
    source = blocks("python")[0]
    compiled = compile(source.replace("asyncio.run(serve())", ""), "README.md", "exec")
    names = {}
    exec(compiled, names)

    assert callable(names["serve"])


def test_the_webhook_receiver_takes_what_is_signed_once_and_nothing_else(monkeypatch, capsys):
    secret = f"whsec_{base64.b64encode(os.urandom(32)).decode()}"
    monkeypatch.setenv("CRM_HOOK_SECRET", secret)
    [source] = [one for one in blocks("python") if "BaseHTTPRequestHandler" in one]
    names = {"__name__": "receiver"}
    exec(compile(source, "README.md", "exec"), names)

    with ThreadingHTTPServer(("127.0.0.1", 0), names["Receiver"]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        said = Endpoint(name="crm", url=url, secret_env=("CRM_HOOK_SECRET",))
        now_ms = int(time.time() * 1000)
        answers = [
            asyncio.run(probe(said, [Secret(one)], now_ms, 10_000))[1]
            for one in (secret, secret, f"whsec_{base64.b64encode(os.urandom(32)).decode()}")
        ]
        server.shutdown()
    assert answers == ["HTTP 204", "HTTP 204", "HTTP 401"]
    assert capsys.readouterr().out == "webhook.test {'endpoint': 'crm'}\n"


def test_the_accounts_example_is_an_accounts_file(tmp_path):
    from tokenline.accounts.file import read_accounts

    file = tmp_path / "accounts.toml"
    file.write_text(blocks("toml")[0])

    [command] = read_accounts(file).commands()
    assert command["account_id"] == "acme"
    assert (
        command["month_tokens"]
        == tomllib.loads(blocks("toml")[0])["plans"]["developer-15m"]["month_tokens"]
    )


@pytest.mark.timeout(240)
def test_the_second_terminal_works_as_written(tmp_path):
    """`up`, then each line of the README's second terminal, in order."""
    (tmp_path / "accounts.toml").write_text(blocks("toml")[0])
    (tmp_path / "schemas").symlink_to(ROOT / "schemas")
    up_line, terminal = (
        next(b for b in blocks("sh") if word in b) for word in ("tokenline up", "accounts apply")
    )
    # The embedded line's default ports may be taken on a shared machine.
    program = [
        shutil.which("tokenline", path=str(Path(sys.executable).parent)),
        *up_line.split()[3:],
        "--free-ports",
    ]
    with (tmp_path / "up.log").open("w") as log:
        stack = subprocess.Popen(program, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until_ready(tmp_path)
        for line in terminal.strip().splitlines():
            if "tokenline reconcile" in line:
                the_gateway_example_serves_a_call(tmp_path)
            done = run(line, tmp_path)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            if "tokenline emit" in line:
                wait_until_landed(tmp_path)
            if "tokenline quota" in line:
                assert "1,550" in done.stdout, done.stdout
            if "account show" in line:
                assert "10,400,000" in done.stdout, done.stdout
            if "tokenline sql" in line:
                assert "acme" in done.stdout, done.stdout
        assert stack.wait(60) == 0
    finally:
        if stack.poll() is None:
            stack.send_signal(signal.SIGTERM)
            stack.wait(60)


def the_gateway_example_serves_a_call(folder):
    """With what `status --secrets` puts into a shell, and nothing else, it reaches the line."""
    (folder / "gateway.py").write_text(blocks("python")[0])
    [connect] = [block for block in blocks("sh") if "--secrets" in block]
    script = f"{connect.replace('uv run ', '')}\npython gateway.py"
    done = run(script, folder)
    assert (done.returncode, done.stdout) == (0, "acknowledged\n"), done.stdout + done.stderr


def wait_until_ready(folder):
    """Look from this process: a command for each look would take the core that the start needs."""

    def ready():
        try:
            return all(one.state == "ready" for one in status(folder / "line"))
        except NotRunning:
            return False

    assert wait_for(ready, timeout_s=90, every_s=0.2), (folder / "up.log").read_text()
    assert run("tokenline status --data ./line", folder).returncode == 0


def wait_until_landed(folder):
    asker = Asker(find_stack(folder / "line"))
    try:
        landed = "SELECT sum(total_tokens) FROM {db}.v_windows"
        assert wait_for(lambda: asker.rows(landed)[0][0] > 0, timeout_s=60, every_s=0.1)
    finally:
        asker.close()
    query = (
        'tokenline sql "SELECT sum(total_tokens) AS t FROM v_windows" --format json --data ./line'
    )
    assert int(json.loads(run(query, folder).stdout)["data"][0]["t"]) == 1550
