-- Was every essay read first as often as second? One row per essay, over comparisons planned and not withdrawn;
-- `skew` = as_a - as_b. Large skews let the judge's taste for a position leak into the scores.
CREATE OR REPLACE VIEW v_position_balance AS
WITH seats AS (
    SELECT batch_id, essay_a AS essay_id, 1 AS as_a, 0 AS as_b FROM comparisons WHERE status <> 'withdrawn'
    UNION ALL
    SELECT batch_id, essay_b AS essay_id, 0 AS as_a, 1 AS as_b FROM comparisons WHERE status <> 'withdrawn'
)
SELECT
    essays.batch_id,
    essays.essay_id,
    essays.is_anchor,
    CAST(coalesce(sum(seats.as_a), 0) AS BIGINT) AS as_a,
    CAST(coalesce(sum(seats.as_b), 0) AS BIGINT) AS as_b,
    CAST(coalesce(sum(seats.as_a - seats.as_b), 0) AS BIGINT) AS skew
FROM essays
LEFT JOIN seats USING (batch_id, essay_id)
GROUP BY essays.batch_id, essays.essay_id, essays.is_anchor
ORDER BY essays.batch_id, essays.essay_id;
