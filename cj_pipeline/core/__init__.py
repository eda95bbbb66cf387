"""What comparative judgement *is*: pure functions over numpy, scipy, polars and pydantic.

No Dagster, no I/O, no clock and no global random state belong here. Everything in this room can be imported
as a library by a researcher who has never heard of the rest of the program.
"""
