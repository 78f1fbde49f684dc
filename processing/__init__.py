"""The service between the event log and the store."""
