"""Who answers a comparison: the protocol every judge follows, what a judge reads, and the judges themselves.

Judges know prompts and providers; they know nothing of the ledger, of waves or of Dagster. Provider SDKs are
imported inside the functions that need them.
"""
