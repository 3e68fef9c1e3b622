"""What is not installed is one line with the command that installs it, for every command there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer

from tokenline import cli
from tokenline.extras import EXTRA_OF, NEED_ALL, missing_extra

ROOT = Path(__file__).parents[2]
# Words behind each command, so that it would begin its work.
ARGUMENTS = {
    "account adjust": "a 1 5", "account cap": "a kim 5", "account close": "a", "account cycle": "a 3",
    "account grant": "a 5", "account open": "a --plan p", "account plan": "a p", "account resume": "a",
    "account show": "a", "account suspend": "a", "account transfer": "a b 5",
    "accounts apply": "{accounts}", "catalog apply": "{catalog}", "catalog check": "{catalog}",
    "catalog diff": "{catalog} {catalog}", "emit": "a --occurred-at now", "quota": "a", "sql": "SELECT",
    "webhooks check": "{webhooks}", "webhooks test": "{webhooks}", "worker": "charging",
}  # fmt: skip
PROGRAM = """
import contextlib, io, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked, commands = (json.loads(word) for word in sys.argv[1:])
sys.meta_path.insert(0, Refuse())
from tokenline import cli
ends = {}
for command, words in commands.items():
    sys.argv = ["tokenline", *words]
    out = io.StringIO()
    code = None
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            print(repr(error), file=out)
    ends[command] = (code, out.getvalue())
print(json.dumps(ends))
"""


def leaves(command, name=()):
    """Return the words of every command."""
    commands = getattr(command, "commands", None)
    if commands is None:
        return [" ".join(name)]
    return [leaf for word, one in commands.items() for leaf in leaves(one, (*name, word))]


COMMANDS = leaves(typer.main.get_command(cli.app))


def test_the_list_of_modules_is_that_of_the_extras():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = told["optional-dependencies"]
    imported = {
        (re.split(r"[\[=<>~;! ]", wanted)[0].lower(), extra)
        for extra in ("worker", "embedded", "registry")
        for wanted in extras[extra]
    }
    distributions = packages_distributions()
    known = {
        (name.lower().replace("_", "-"), EXTRA_OF[module])
        for module in EXTRA_OF
        for name in distributions.get(module, [])
    }
    assert imported <= known
    base = {re.split(r"[\[=<>~;! ]", one)[0] for one in told["dependencies"]}
    assert not base & {module.replace("_", "-") for module in EXTRA_OF}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """How each command ends, and what it says, where no extra is installed."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "accounts.toml").write_text('[[accounts]]\nid = "a"\n')
    (folder / "webhooks.toml").write_text(
        '[[endpoints]]\nname = "crm"\nurl = "http://127.0.0.1:1"\nsecret_file = ["key"]\n'
    )
    (folder / "key").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    paths = {name: folder / f"{name}.toml" for name in ("accounts", "webhooks")}
    paths["catalog"] = ROOT / "schemas" / "catalog.toml"
    words = {
        one: [*one.split(), *ARGUMENTS.get(one, "").format(**paths).split()] for one in COMMANDS
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(EXTRA_OF)), json.dumps(words)],
        cwd=folder,
        env={"TOKENLINE_KAFKA_BOOTSTRAP": "127.0.0.1:1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_a_bare_install_ends_with_one_line(ends, command):
    code, told = ends[command]
    assert told.startswith("tokenline: ") or not told
    assert told.count("\n") <= 1, told
    assert (code == 0) == (told == "")
    if command in NEED_ALL:
        assert "pip install 'tokenline[all]'" in told
    if "not installed" in told:
        assert re.search(r"pip install 'tokenline\[(worker|embedded|registry|all)\]'", told)
        assert code == 1


def test_most_commands_need_an_extra_and_say_it(ends):
    assert sum("not installed" in told for _, told in ends.values()) > 15


def test_a_module_of_nobody_is_a_defect_and_no_extra():
    assert missing_extra(ModuleNotFoundError("no", name="tokenline.no_such")) is None
    assert missing_extra(ModuleNotFoundError("no", name="psutil.x"), "up") is not None
