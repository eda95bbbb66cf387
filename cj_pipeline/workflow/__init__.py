"""How a batch goes from files to a final decision: intake, the wave loop, and the frames results are told in.

Core, judges and ledger meet here; Dagster does not.
"""
