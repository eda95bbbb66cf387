-- What did the judging cost? One row per batch, provider and model, over comparisons with at least one call.
-- `cost_usd` is null, not 0, as soon as one cost is unknown; `unpriced` counts those. If `simulated`, nobody was paid.
CREATE OR REPLACE VIEW v_costs AS
SELECT
    comparisons.batch_id,
    coalesce(comparisons.provider, batches.provider) AS provider,
    coalesce(comparisons.model, batches.model) AS model,
    count(*) AS comparisons,
    count(*) FILTER (comparisons.status = 'judged') AS judged,
    CAST(sum(comparisons.attempts) AS BIGINT) AS attempts,
    CAST(sum(comparisons.tokens_in) AS BIGINT) AS tokens_in,
    CAST(sum(comparisons.tokens_out) AS BIGINT) AS tokens_out,
    CASE WHEN count(comparisons.cost_usd) = count(*) THEN sum(comparisons.cost_usd) END AS cost_usd,
    count(*) - count(comparisons.cost_usd) AS unpriced,
    batches.simulated
FROM comparisons
JOIN batches USING (batch_id)
WHERE comparisons.attempts > 0
GROUP BY ALL
ORDER BY comparisons.batch_id, provider, model;
