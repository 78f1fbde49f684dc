"""One file an engine: the only place that imports an engine's client library."""
