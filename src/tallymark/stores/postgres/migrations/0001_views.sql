-- Records as people read them, and as the tables that other systems had, so that SQL written for those runs.
-- The store's own rows are in none of them.

-- A JSON number as a whole one; null for anything else, since anybody may record anything.
CREATE FUNCTION tallymark.whole(jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN jsonb_typeof($1) = 'number' THEN CASE WHEN abs($1::numeric) < 9e18 THEN round($1::numeric)::bigint END
    END
$$;

CREATE VIEW tallymark.readable AS
SELECT
    (left(journal, 22) || lpad(to_hex(seq), 10, '0'))::uuid AS id,
    to_timestamp(timestamp / '1e9'::float8) AS time,
    service, metric_type, name, value, unit, success, error, trace_id, session_id,
    metadata::jsonb AS metadata,
    description,
    timestamp AS timestamp_ns,
    hashtext(metric_type) AS type_hash  -- what the index has
FROM tallymark.records
WHERE metric_type <> 'tallymark';

-- Requests were of type 'api' there.
CREATE VIEW tallymark.metrics AS
SELECT
    id, time AS timestamp, 'api'::text COLLATE "C" AS metric_type, name AS metric_name, value,
    CASE WHEN trace_id IS NULL THEN metadata ELSE metadata || jsonb_build_object('trace_id', trace_id) END AS metadata
FROM tallymark.readable
WHERE metric_type = 'api_request' AND type_hash = hashtext('api_request')
UNION ALL
SELECT
    id, time AS timestamp, metric_type, name AS metric_name, value,
    CASE WHEN trace_id IS NULL THEN metadata ELSE metadata || jsonb_build_object('trace_id', trace_id) END AS metadata
FROM tallymark.readable
WHERE metric_type <> 'api_request';

CREATE VIEW tallymark.system_metrics AS
SELECT id, time AS timestamp, metric_type, name, value, unit, metadata AS metadata_, service, description
FROM tallymark.readable;

-- A stage is recorded when it ends.
CREATE VIEW tallymark.processing_metrics AS
SELECT
    id::text AS metric_id, session_id, metadata ->> 'user' AS user_id, metadata ->> 'chat' AS chat_id, name AS stage,
    to_char(
        (time - CASE WHEN abs(value) < 1e13 THEN value * interval '1 ms' END) AT TIME ZONE 'UTC',
        'YYYY-MM-DD"T"HH24:MI:SS.US'
    ) AS start_time,
    to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') AS end_time,
    CASE WHEN abs(value) < 1e13 THEN round(value)::bigint END AS duration_ms, success, error AS error_message, metadata::text AS metadata
FROM tallymark.readable
WHERE metric_type = 'processing' AND type_hash = hashtext('processing');

CREATE VIEW tallymark.correction_metrics AS
SELECT
    id::text AS correction_id, session_id, metadata ->> 'admin' AS admin_user_id, metadata ->> 'message' AS message_id,
    name AS correction_type,
    tallymark.whole(metadata -> 'original_length') AS original_length,
    tallymark.whole(metadata -> 'corrected_length') AS corrected_length,
    CASE WHEN abs(value) < 1e13 THEN round(value)::bigint END AS processing_time_ms,
    tallymark.whole(metadata -> 'voice_transcription_time_ms') AS voice_transcription_time_ms,
    tallymark.whole(metadata -> 'ai_correction_time_ms') AS ai_correction_time_ms,
    to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') AS timestamp,
    tallymark.whole(metadata -> 'admin_satisfaction') AS admin_satisfaction,
    tallymark.whole(metadata -> 'retry_count') AS retry_count,
    metadata::text AS metadata
FROM tallymark.readable
WHERE metric_type = 'correction' AND type_hash = hashtext('correction');
