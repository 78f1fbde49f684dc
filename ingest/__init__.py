"""The service between the MQTT broker and the event log."""
