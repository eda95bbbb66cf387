"""The ENG5 programme: what is done with the Swedish national test English 5.

Here: the inventory of its assets folder, the prompt variants, the run artefact with its dry run and its verification,
and what is reported about how a judge and the experts agree. Not here: what alignment is (`core.alignment`), how
batches are judged (`workflow`), and how Dagster runs it (`defs`). Nothing here is about one real script: those are
confidential and stay outside the repository.
"""
