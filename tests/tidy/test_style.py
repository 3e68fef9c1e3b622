"""Style is a test: the rules a machine can check, each with a sample that breaks it."""

from __future__ import annotations

import re
import statistics

import pytest

from tests.tidy.source import (
    DIVIDES,
    IMPURE,
    PURE,
    Module,
    bare_excepts,
    clock_reads,
    float_uses,
    functions,
    imports_of,
    locale_texts,
    long_functions,
    long_module,
    modules,
    narrow_sums,
    stage_of,
    tracked_texts,
    uncommented_names,
    undocumented,
)
from tokenline.settings import Settings

OURS = modules("src", "streams")
PURE_MODULES = [one for one in OURS if stage_of(one) in PURE and one.name.startswith("src")]
FUNCTION_LINES_P90 = 20
# Where catching everything is right, and how often: the edge of a process or thread.
CATCH_ALL = {
    "src/tokenline/cli/__init__.py": 1,
    "src/tokenline/landing/flow.py": 1,
    "src/tokenline/platform/supervision.py": 1,
    "streams/line.py": 1,
    "streams/line_app.py": 1,
    "streams/webhooks.py": 1,
    # Foreign code that raises what it likes: chDB, decoders of batches and Avro on mutated bytes, registry client.
    "src/tokenline/landing/reader.py": 1,
    "streams/records.py": 1,
    "src/tokenline/platform/engine.py": 1,
    "src/tokenline/wire/avro.py": 1,
    "src/tokenline/wire/columns.py": 2,
    "src/tokenline/wire/registry_server.py": 3,
}
# Who may look at a clock: clock.py for all; what measures, and what waits for processes.
CLOCK_READERS = {
    "src/tokenline/clock.py",
    "src/tokenline/bench/gateway.py",
    "src/tokenline/bench/latency.py",
    "src/tokenline/bench/measure.py",
    "src/tokenline/bench/rivals.py",
    "src/tokenline/platform/crew.py",
    "src/tokenline/platform/identity.py",
    "src/tokenline/platform/processes.py",
    "src/tokenline/platform/supervision.py",
}
# A stage may import only what stands before it (DESIGN, Layout).
MAY_NOT_IMPORT = {
    "wire": ("tokenline.landing", "tokenline.platform", "streams", "faust", "clickhouse_connect"),
    "landing": ("tokenline.platform", "streams", "faust"),
    "audit": ("streams", "faust"),
}
MACHINE_PATHS = re.compile(r"(/tmp/w\b|/(?:work|root)/|/home/\w+/|/Users/\w+/)")
REGISTRY_HOSTS = re.compile(r"\b(?:[\w-]+\.)*(?:artifactory|nexus|jfrog|pkg\.dev|\.internal)\b")


def findings(check, among):
    return [found for one in among for found in check(one)]


def test_no_function_is_longer_than_a_page():
    assert findings(long_functions, OURS) == []


def test_nine_functions_in_ten_are_short():
    lengths = [lines for one in OURS for _, _, lines in functions(one)]
    assert statistics.quantiles(lengths, n=10)[-1] <= FUNCTION_LINES_P90


def test_no_module_is_longer_than_a_sitting():
    assert findings(long_module, OURS) == []


def test_pure_stages_know_no_server_no_framework_and_no_time():
    assert {stage_of(one) for one in PURE_MODULES} == set(PURE)
    impure = findings(lambda one: imports_of(one, IMPURE), PURE_MODULES)
    # event.py takes a clock and randomness to name a new event: it is what a gateway calls.
    assert [found for found in impure if found[0] != "src/tokenline/event.py"] == []


@pytest.mark.parametrize("stage", sorted(MAY_NOT_IMPORT))
def test_a_stage_imports_only_what_stands_before_it(stage):
    here = [one for one in OURS if one.name.startswith(f"src/tokenline/{stage}/")]
    assert here
    assert findings(lambda one: imports_of(one, MAY_NOT_IMPORT[stage]), here) == []


def test_only_the_clock_reads_a_clock():
    assert {name for name, _, _ in findings(clock_reads, OURS)} <= CLOCK_READERS


def test_no_float_comes_near_tokens():
    counts: dict[str, int] = {}
    for name, _, _ in findings(float_uses, PURE_MODULES):
        short = name.removeprefix("src/tokenline/")
        counts[short] = counts.get(short, 0) + 1
    assert counts == DIVIDES


def test_everything_is_caught_only_at_the_edge():
    counts: dict[str, int] = {}
    for name, _, _ in findings(bare_excepts, OURS):
        counts[name] = counts.get(name, 0) + 1
    assert counts == CATCH_ALL


def test_texts_are_utf8_and_never_in_the_locales_encoding():
    assert findings(locale_texts, OURS) == []


def test_everything_public_has_words():
    assert findings(undocumented, OURS) == []


def test_every_metric_says_what_an_operator_does_about_it():
    (names,) = [one for one in OURS if one.name.endswith("metric_names.py")]
    assert findings(uncommented_names, [names]) == []


def test_every_setting_is_described():
    assert [name for name, one in Settings.model_fields.items() if not one.description] == []


def test_every_sum_in_sql_is_made_in_128_bits():
    """Of columns of a view it is: theirs are such sums."""
    files = [one for one in tracked_texts() if one.name.endswith(".sql")]
    ours = [one for one in OURS if stage_of(one) != "cli"]
    assert len(files) > 10
    assert findings(narrow_sums, [*files, *ours]) == []


def test_no_machine_path_and_no_package_registry_is_in_the_repository():
    found = [
        (one.name, line)
        for one in tracked_texts()
        if one.name != "tests/tidy/test_style.py"
        for line in one.text.splitlines()
        if MACHINE_PATHS.search(line) or REGISTRY_HOSTS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * 60),
        (long_module, "x = 1\n" * 401),
        (lambda one: imports_of(one, IMPURE), "def f():\n    from tokenline.wire import avro\n"),
        (lambda one: imports_of(one, IMPURE), "from tokenline import clock\n"),
        (lambda one: imports_of(one, IMPURE), "import faust.types\n"),
        (clock_reads, "import time\nx = time.time()\n"),
        (clock_reads, "from time import monotonic\n"),
        (clock_reads, "import datetime\nx = datetime.datetime.now()\n"),
        (clock_reads, "x = f(clock=time.time)\n"),
        (float_uses, "x = a / b\n"),
        (float_uses, "x /= 2\n"),
        (float_uses, "x = float(a)\n"),
        (float_uses, "x = np.float64(a)\n"),
        (locale_texts, "path.read_text()\n"),
        (locale_texts, "path.write_text('a')\n"),
        (locale_texts, "path.open('w')\n"),
        (locale_texts, "open(path)\n"),
        (bare_excepts, "try:\n    f()\nexcept Exception:\n    pass\n"),
        (bare_excepts, "try:\n    f()\nexcept (ValueError, BaseException) as e:\n    pass\n"),
        (bare_excepts, "try:\n    f()\nexcept:\n    pass\n"),
        (undocumented, '"""M."""\ndef f(): ...\n'),
        (undocumented, '"""M."""\nclass C:\n    """C."""\n    def f(self): ...\n'),
        (undocumented, "x = 1\n"),
        (bare_excepts, "try:\n    f()\nexcept Exception as e:\n    raise ValueError from e\n"),
        (uncommented_names, "\nLAG = 'lag'\n"),
        (narrow_sums, "Q = 'SELECT sum(a) FROM t'\n"),
        (narrow_sums, "Q = f'SELECT {x}, sumIf(a, b) FROM t'\n"),
    ],
)
def test_each_check_can_fail(check, bad):
    assert check(Module("bad.py", bad))


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATHS, "see /home/somebody/notes"),
        (MACHINE_PATHS, "cd /" + "work/main"),
        (REGISTRY_HOSTS, "https://artifactory.example.com/pypi"),
        (REGISTRY_HOSTS, "https://europe-python.pkg.dev/x"),
    ],
)
def test_each_pattern_can_match(pattern, line):
    assert pattern.search(line)


@pytest.mark.parametrize("good", ["import timeit\n", "import faustus\n", "x = a // b\n"])
def test_the_checks_let_good_code_pass(good):
    one = Module("good.py", good)
    assert imports_of(one, IMPURE) == clock_reads(one) == float_uses(one) == []
