"""Be the `tokenline` command: parse, call, print. What a command does is in the module it calls."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from tokenline.cli import account, ask, catalog, migrate, send, stack, trial, webhooks
from tokenline.cli.common import Misuse, err
from tokenline.errors import SettingsError, TokenlineError
from tokenline.extras import missing_extra
from tokenline.masking import without_secrets
from tokenline.settings import injected_variables

# As shells have it: 128 and the number of SIGINT. Typer returns it for a Ctrl-C in a command.
INTERRUPTED = 130
WRONG_SETTING = 2
WRONG_USAGE = 2  # as click has it

app = typer.Typer(
    help="tokenline: the usage line for AI tokens (词元). Start with: tokenline demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for commands in (stack, trial, ask, send):
    app.add_typer(commands.app)
app.add_typer(send.accounts_app, name="accounts")
app.add_typer(migrate.app, name="migrate")
app.add_typer(catalog.app, name="catalog")
app.add_typer(account.app, name="account")
app.add_typer(webhooks.app, name="webhooks")


@app.callback()
def _begin(context: typer.Context) -> None:
    """Keep what clients log off a person's terminal: what matters of it arrives as an error of ours."""
    if injected := injected_variables(os.environ):
        err.print(_about(injected), markup=False, soft_wrap=True)
    if context.invoked_subcommand != "worker":
        for client in ("aiokafka", "clickhouse_connect"):
            logging.getLogger(client).setLevel(logging.CRITICAL + 1)


def _about(injected: list[str]) -> str:
    others = f" and {len(injected) - 1} more" if len(injected) > 1 else ""
    verb = "are" if others else "is"
    return (
        f"tokenline: {injected[0]}{others} {verb} ignored: so Kubernetes and Docker announce a service "
        "of that name; enableServiceLinks: false ends it"
    )


def main() -> NoReturn:
    """Run the command; a user's mistake gives one line and a non-zero exit, never a traceback."""
    code: object = 0
    # A supervisor's SIGTERM ends a command as Ctrl-C does: what it has started and stored goes with it.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        # Without click's own ending, `typer.Exit(1)` comes back as a value.
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            _end("stopped", INTERRUPTED)
    except Misuse as error:
        _end(f"{error}", WRONG_USAGE)
    except SettingsError as error:
        # Another code than what a restart may help against: see the table in `streams/README.md`.
        _end(f"{error}", WRONG_SETTING)
    except TokenlineError as error:
        _end(f"{error}", 1)
    except (typer.Abort, KeyboardInterrupt):
        _end("stopped", INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except ModuleNotFoundError as error:
        told = missing_extra(error, " ".join(sys.argv[1:2]))
        if told is None:
            raise
        _end(f"{told}", 1)
    except Exception as error:  # noqa: BLE001  the CLI's edge: click has its own errors and their codes
        _end_click(error)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(text: str, code: int) -> NoReturn:
    err.print(f"tokenline: {without_secrets(text)}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)


def _end_click(error: Exception) -> NoReturn:
    """Show a usage error in one line; anything else is a defect of ours and keeps its traceback."""
    show: Callable[[], None] | None = getattr(error, "show", None)
    if show is None:
        raise error
    context: typer.Context | None = getattr(error, "ctx", None)
    code, text = int(getattr(error, "exit_code", 1)), error.format_message()  # type: ignore[attr-defined]
    if context is None or "\n" in text:  # A group of commands that was named alone shows its help.
        show()
        sys.exit(code)
    if text.startswith("No such option: -") and text[17:18].isdigit():
        text += " (a number below zero is written behind --)"
    # Typer says of a choice that its check was one.
    text = text.replace("Value error, ", "").rstrip(".?")
    _end(f"{text}; see {context.command_path} --help", code)
