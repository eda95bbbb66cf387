-- How many of the possible pairs were judged at least once, in either order? One row per batch. A pair that only
-- ever failed is not covered. Coverage describes a batch; progress is counted against its total_budget instead.
CREATE OR REPLACE VIEW v_coverage AS
WITH nodes AS (
    SELECT batch_id, count(*) AS essays
    FROM essays
    GROUP BY batch_id
),
covered AS (
    SELECT batch_id, count(DISTINCT (least(essay_a, essay_b), greatest(essay_a, essay_b))) AS pairs
    FROM comparisons
    WHERE status = 'judged'
    GROUP BY batch_id
),
counted AS (
    SELECT
        batches.batch_id,
        coalesce(nodes.essays, 0) AS essays,
        coalesce(nodes.essays * (nodes.essays - 1) // 2, 0) AS max_possible_pairs,
        coalesce(covered.pairs, 0) AS successful_pairs
    FROM batches
    LEFT JOIN nodes USING (batch_id)
    LEFT JOIN covered USING (batch_id)
)
SELECT
    batch_id,
    essays,
    max_possible_pairs,
    successful_pairs,
    CASE WHEN max_possible_pairs > 0 THEN successful_pairs / max_possible_pairs END AS share,
    max_possible_pairs > 0 AND successful_pairs >= max_possible_pairs AS complete
FROM counted
ORDER BY batch_id;
