-- Records as people read them, and as the tables that other systems had, so that SQL written for those runs. The
-- store's own rows are in none of them. Where the file has a table of that name, it stays and there is no view.

CREATE VIEW tallymark_records AS
SELECT
    substr(journal, 1, 8) || '-' || substr(journal, 9, 4) || '-' || substr(journal, 13, 4) || '-'
        || substr(journal, 17, 4) || '-' || substr(journal, 21, 2) || printf('%010x', seq) AS id,
    strftime('%Y-%m-%dT%H:%M:%S', timestamp / 1000000000, 'unixepoch')
        || printf('.%06d+00:00', timestamp % 1000000000 / 1000) AS time,
    service, metric_type, name, value, unit, success, error, trace_id, session_id, metadata, description,
    timestamp AS timestamp_ns
FROM (
    SELECT r.*, s.service, s.metric_type, s.name, s.unit, s.description, j.journal
    FROM (
        SELECT timestamp, journal AS journal_id, seq, series, value, success, error, trace_id, session_id, metadata
        FROM tallymark_rows
    ) AS r
    JOIN tallymark_series AS s ON s.id = r.series
    JOIN tallymark_journals AS j ON j.id = r.journal_id
)
WHERE metric_type <> 'tallymark';

-- Requests were of type 'api' there. Times are as SQLite's own functions give them: datetime('now', '-1 hour').
CREATE VIEW IF NOT EXISTS metrics AS
SELECT
    id,
    replace(substr(time, 1, 26), 'T', ' ') AS timestamp,
    CASE metric_type WHEN 'api_request' THEN 'api' ELSE metric_type END AS metric_type,
    name AS metric_name,
    value,
    CASE WHEN trace_id IS NULL THEN metadata ELSE json_set(metadata, '$.trace_id', trace_id) END AS metadata
FROM tallymark_records;

CREATE VIEW IF NOT EXISTS system_metrics AS
SELECT
    id, replace(substr(time, 1, 26), 'T', ' ') AS timestamp,
    metric_type, name, value, unit, metadata AS metadata_, service, description
FROM tallymark_records;

-- A stage is recorded when it ends.
CREATE VIEW IF NOT EXISTS processing_metrics AS
SELECT
    id AS metric_id, session_id, json_extract(metadata, '$.user') AS user_id, json_extract(metadata, '$.chat') AS chat_id, name AS stage,
    strftime('%Y-%m-%dT%H:%M:%S', began / 1000000, 'unixepoch') || printf('.%06d', began % 1000000) AS start_time,
    substr(time, 1, 26) AS end_time,
    CAST(round(value) AS INTEGER) AS duration_ms,
    success, error AS error_message, metadata
FROM (
    SELECT *, max(timestamp_ns / 1000 - CAST(max(0.0, value) * 1000 AS INTEGER), 0) AS began
    FROM tallymark_records
    WHERE metric_type = 'processing'
);

CREATE VIEW IF NOT EXISTS correction_metrics AS
SELECT
    id AS correction_id, session_id, json_extract(metadata, '$.admin') AS admin_user_id, json_extract(metadata, '$.message') AS message_id,
    name AS correction_type,
    json_extract(metadata, '$.original_length') AS original_length,
    json_extract(metadata, '$.corrected_length') AS corrected_length,
    CAST(round(value) AS INTEGER) AS processing_time_ms,
    json_extract(metadata, '$.voice_transcription_time_ms') AS voice_transcription_time_ms,
    json_extract(metadata, '$.ai_correction_time_ms') AS ai_correction_time_ms,
    substr(time, 1, 26) AS timestamp,
    json_extract(metadata, '$.admin_satisfaction') AS admin_satisfaction,
    json_extract(metadata, '$.retry_count') AS retry_count,
    metadata
FROM tallymark_records
WHERE metric_type = 'correction';
