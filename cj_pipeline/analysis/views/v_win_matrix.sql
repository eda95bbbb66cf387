-- Who beat whom, and how often? One row per ordered pair of essays with at least one judgment between them:
-- `wins` of winner_id over loser_id (0 if only the other one won), out of `comparisons` judged in either order.
CREATE OR REPLACE VIEW v_win_matrix AS
WITH judged AS (
    SELECT batch_id, winner_id, loser_id
    FROM comparisons
    WHERE status = 'judged'
),
outcomes AS (
    SELECT batch_id, winner_id, loser_id, 1 AS won FROM judged
    UNION ALL
    SELECT batch_id, loser_id, winner_id, 0 AS won FROM judged
)
SELECT
    batch_id,
    winner_id,
    loser_id,
    CAST(sum(won) AS BIGINT) AS wins,
    count(*) AS comparisons
FROM outcomes
GROUP BY ALL
ORDER BY batch_id, winner_id, loser_id;
