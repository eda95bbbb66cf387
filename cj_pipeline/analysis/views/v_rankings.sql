-- Who ranks where, how certain is it, and which grade follows? One row per essay with a score, best first. `grade`
-- is null where none could be projected (`reason` says why); `grade_uniform` is what it would be if all grades were
-- equally common. If `simulated`, no real judge was asked.
CREATE OR REPLACE VIEW v_rankings AS
SELECT
    scores.batch_id,
    scores.rank,
    scores.essay_id,
    scores.is_anchor,
    scores.known_grade,
    scores.score,
    scores.se,
    scores.comparisons,
    scores.wins,
    scores.losses,
    scores.component,
    grades.grade,
    grades.confidence,
    grades.label,
    grades.boundary_distance_se,
    grades.nearest_boundary,
    grades.would_change,
    grades.grade_uniform,
    grades.reason,
    batches.simulated
FROM bt_scores AS scores
JOIN batches USING (batch_id)
LEFT JOIN grade_projections AS grades USING (batch_id, essay_id)
ORDER BY scores.batch_id, scores.rank, scores.essay_id;
