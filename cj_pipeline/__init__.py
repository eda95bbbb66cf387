"""cj_pipeline: comparative judgement of student essays, orchestrated as Dagster assets."""
