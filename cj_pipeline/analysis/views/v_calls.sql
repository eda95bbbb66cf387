-- How did the calls to the judge go? One row per batch, wave, provider, model and outcome (with its error), with tokens,
-- cost and latency. `unpriced` counts calls of unknown cost; a lost call is costed at its upper bound.
CREATE OR REPLACE VIEW v_calls AS
SELECT
    batch_id,
    wave,
    provider,
    model,
    outcome,
    error_type,
    http_status,
    count(*) AS calls,
    CAST(sum(coalesce(tokens_input, 0)) AS BIGINT) AS tokens_input,
    CAST(sum(coalesce(tokens_cache_read, 0)) AS BIGINT) AS tokens_cache_read,
    CAST(sum(coalesce(tokens_cache_write, 0)) AS BIGINT) AS tokens_cache_write,
    CAST(sum(coalesce(tokens_output, 0)) AS BIGINT) AS tokens_output,
    CAST(sum(coalesce(tokens_reasoning, 0)) AS BIGINT) AS tokens_reasoning,
    sum(cost_usd) AS cost_usd,
    count(*) - count(cost_usd) AS unpriced,
    median(latency_seconds) AS median_latency_seconds,
    quantile_cont(latency_seconds, 0.95) AS p95_latency_seconds,
    median(epoch(sent_at - queued_at)) AS median_wait_seconds
FROM attempts
GROUP BY ALL
ORDER BY batch_id, wave, provider, model, outcome, error_type;
