"""What people look at: pictures of a batch and its tables in Markdown, made from the frames of `workflow.frames`.

Nothing here judges, fits or decides, reads a ledger or knows Dagster: frames and finished figures go in, bytes and text
come out.
"""
