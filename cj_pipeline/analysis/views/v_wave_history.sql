-- How did a batch settle, wave by wave? One row per wave with running totals of comparisons planned (and not
-- withdrawn) and judged, how far scores still moved, how certain they were, and what was decided.
CREATE OR REPLACE VIEW v_wave_history AS
SELECT
    waves.batch_id,
    waves.wave,
    waves.pair_mode,
    waves.planned,
    waves.judged,
    waves.failed,
    CAST(sum(waves.planned) OVER so_far AS BIGINT) AS cumulative_comparisons,
    CAST(sum(waves.judged) OVER so_far AS BIGINT) AS cumulative_judged,
    batches.total_budget,
    waves.max_score_change,
    waves.mean_se,
    waves.max_se,
    waves.decision,
    waves.reason,
    waves.started_at,
    waves.ended_at
FROM waves
JOIN batches USING (batch_id)
WINDOW so_far AS (PARTITION BY waves.batch_id ORDER BY waves.wave)
ORDER BY waves.batch_id, waves.wave;
