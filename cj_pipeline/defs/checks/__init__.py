"""Asset checks: `native` for what must always hold, `expectations` for the shape of the data (Great Expectations)."""
