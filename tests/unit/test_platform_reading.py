from __future__ import annotations

import pytest

from tokenline.platform import access
from tokenline.platform.access import Role
from tokenline.platform.dialect import RefusedStatementError
from tokenline.platform.reading import COMBINATORS, GRAMMAR, Gate, is_allowed, listed_functions

GATE = Gate(["file", "lower", "sum", "hostName", "url", "version"])
# Names that lead out of the warehouse, or to more than the line's views, in any version of the engine.
NEVER = (
    "file url s3 remote cluster executable python eval input view loop dictionary merge values "
    "catboostEvaluate dictGet joinGet getSetting getServerSetting getMacro getServerPort hostName FQDN "
    "getOSKernelVersion addressToLine addressToSymbol filesystemAvailable showCertificate sleep "
    "sleepEachRow throwIf reverseDNSQuery aiGenerate evalMLMethod hasColumnInTable globalVariable "
    "arrayReduce initializeAggregation finalizeAggregation runningAccumulate formatQuery fuzzQuery "
    "getClientHTTPHeader structureToProtobufSchema formatRow format regionToName numbers"
)


@pytest.mark.parametrize("name", NEVER.split())
def test_what_leads_out_is_not_on_the_list(name):
    assert not is_allowed(name)
    assert not is_allowed(f"{name}If")


def test_the_list_has_each_name_once_and_no_word_of_the_grammar_is_a_way_in():
    listed = listed_functions()
    assert len(listed) == len(set(listed))
    assert not {word.lower() for word in GRAMMAR} & {name.lower() for name in NEVER.split()}
    assert not [name for name in listed if name.startswith("__")]


def test_aggregate_functions_are_called_with_combinators():
    assert all(is_allowed(f"sum{end}") for end in COMBINATORS)
    assert is_allowed("uniqExactIfOrNull")
    assert not is_allowed("sumState")


@pytest.mark.parametrize(
    "canonical",
    [
        b"SELECT lower('file(') AS x FROM t WHERE (x, 'a') IN (SELECT 1, 'it''s \\' file(')",
        b"SELECT sum(a) OVER (PARTITION BY b ORDER BY c ASC), -1, 1 - -1, a.b.c, {x:Array(String)}",
        b"SELECT 1 AS `a\\`b`, `url` FROM system.tables UNION ALL (SELECT 2)",
        b"WITH x AS (SELECT 1) SELECT * EXCEPT a APPLY lower FROM x, v FINAL",
        b"DESCRIBE TABLE v_usage",
        b"SHOW TABLES",
    ],
)
def test_a_query_goes_through_as_it_is(canonical):
    # `url` is no function of this engine, so it may be a column's name; it may not be called.
    gate = Gate(["file", "lower", "sum"])
    assert gate.check(canonical).sql == canonical


@pytest.mark.parametrize(
    ("canonical", "text"),
    [
        (b"SELECT file('x')", "may not call file()"),
        (b"SELECT `file`('x')", "may not call file()"),
        (b"SELECT FILE('x')", "may not call FILE()"),
        (b"SELECT t.file('x')", "may not call file()"),
        (b"SELECT no_such_function(1)", "may not call no_such_function()"),
        (b"SELECT arrayMap(file, ['x'])", "may not name file"),
        (b"SELECT * APPLY `file` FROM t", "may not name file"),
        (b"SELECT * FROM url('x')", "may not call url()"),
        (b"SELECT * FROM system.processes", "may not read system.processes"),
        (b"SELECT 1 IN (`system`.processes)", "may not read system.processes"),
        (b"SELECT * FROM INFORMATION_SCHEMA.tables", "may not read"),
        (b"SELECT 1 SETTINGS readonly = 0", "may not change settings"),
        (b"SELECT 1 INTO OUTFILE 'x'", "INTO OUTFILE"),
        (b"SELECT 1 PARALLEL WITH SELECT 2", "PARALLEL WITH"),
        (b"SELECT {x:Identifier}", "Identifier"),
        (b"SELECT 1 FORMAT CapnProto", "the format CapnProto"),
        (b"SELECT 1 -- x", "may not hold"),
        (b"SELECT 1 /* x */", "may not hold"),
        (b"SELECT 1; SELECT 2", "may not hold"),
        (b"SELECT $$x$$", "may not hold"),
        (b"SELECT \xe2\x80\x98x\xe2\x80\x99", "may not hold"),
        (b"SELECT 'open", "may not hold"),
        (b"SET ROLE writer", "SET ROLE: only queries"),
        (b"SHOW GRANTS", "SHOW GRANTS: only queries"),
        (b"", "only queries"),
    ],
)
def test_what_no_query_may_is_named(canonical, text):
    with pytest.raises(RefusedStatementError, match=text.replace("(", "\\(").replace(")", "\\)")):
        GATE.check(canonical)


def test_the_format_is_taken_off_the_query():
    reading = GATE.check(b"SELECT 1 AS FORMAT, 'FORMAT x' FORMAT JSON")
    assert (reading.sql, reading.format) == (b"SELECT 1 AS FORMAT, 'FORMAT x' ", "JSON")


def test_a_limit_may_be_lowered_only():
    def limit(asked):
        return access.settings_of(Role.READER, {"max_execution_time": asked})["max_execution_time"]

    most = str(access.LIMITS[Role.READER]["max_execution_time"])
    assert limit("1") == "1"
    assert [limit(asked) for asked in ("0", "31", "-1", "1e9", "", "\u0661\u0661\u0661")] == [
        most
    ] * 6


def test_who_only_reads_may_change_few_settings_and_who_writes_any():
    with pytest.raises(RefusedStatementError, match="additional_table_filters"):
        access.settings_of(Role.READER, {"additional_table_filters": "{}"})
    assert access.settings_of(Role.WRITER, {"limit": "3"}) == {"limit": "3"}


def test_each_role_has_its_grants_limits_and_lock():
    assert access.GRANTS.keys() == access.LIMITS.keys() == access.READONLY.keys()
    assert not [one for one in access.GRANTS.values() if "ALL" in one.split() or "SOURCES" in one]
