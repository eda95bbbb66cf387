-- Does the scale give back the experts' grades? One row per anchor: its expert grade beside the grade projected
-- without it (leave-one-out). `agrees` is null where none could be projected. If `simulated`, it says nothing.
CREATE OR REPLACE VIEW v_anchor_check AS
SELECT
    essays.batch_id,
    essays.essay_id,
    essays.known_grade AS expert_grade,
    grades.grade AS leave_one_out_grade,
    essays.known_grade = grades.grade AS agrees,
    grades.confidence,
    grades.label,
    grades.reason,
    scores.rank,
    scores.score,
    scores.se,
    report.misfit,
    report.leverage,
    report.influence,
    report.replace_first,
    batches.simulated
FROM essays
JOIN batches USING (batch_id)
LEFT JOIN bt_scores AS scores USING (batch_id, essay_id)
LEFT JOIN grade_projections AS grades USING (batch_id, essay_id)
LEFT JOIN anchor_report AS report USING (batch_id, essay_id)
WHERE essays.is_anchor
ORDER BY essays.batch_id, scores.rank, essays.essay_id;
