-- Who may do what in a ClickHouse server: `tokenline migrate plan --roles` prints this, `migrate apply --roles`
-- runs it, as often as you like. It makes roles and no users: make those with passwords of yours and grant
-- them one role each. The embedded warehouse has the same roles by itself.
--
-- tokenline_writer: landing workers and migrations.
-- tokenline_auditor: `tokenline reconcile`; reads the tables themselves.
-- tokenline_reader: people and dashboards; sees the line's views and no table. No role has a source
--   outside ClickHouse (file, url, s3, another server), and none may make users or roles.
CREATE SETTINGS PROFILE OR REPLACE tokenline_auditor{on_cluster} SETTINGS
  readonly = 2 CONST, allow_ddl = 0 CONST, allow_introspection_functions = 0 CONST,
  max_execution_time = 600 MAX 600;

CREATE SETTINGS PROFILE OR REPLACE tokenline_reader{on_cluster} SETTINGS
  readonly = 1 CONST, allow_ddl = 0 CONST, allow_introspection_functions = 0 CONST,
  max_execution_time = 30 MAX 30, max_memory_usage = 1073741824 MAX 1073741824,
  max_result_rows = 1000000 MAX 1000000, max_result_bytes = 268435456 MAX 268435456,
  max_threads = 2 MAX 2;

CREATE ROLE IF NOT EXISTS tokenline_writer{on_cluster};

CREATE ROLE IF NOT EXISTS tokenline_auditor{on_cluster} SETTINGS PROFILE tokenline_auditor;

CREATE ROLE IF NOT EXISTS tokenline_reader{on_cluster} SETTINGS PROFILE tokenline_reader;

GRANT{on_cluster} SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE ON {database}.* TO tokenline_writer;

GRANT{on_cluster} SELECT ON {database}.* TO tokenline_auditor;

GRANT{on_cluster} SELECT ON {database}.{view} TO tokenline_reader;
