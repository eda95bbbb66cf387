"""What analysts query: the DuckDB graph of all batches and its views.

The tables' meaning is in `workflow.frames`, how their rows come about in `workflow`; neither belongs here.
"""
