"""A loopback server that speaks the Anthropic and OpenAI protocols, for tests and benchmarks."""
