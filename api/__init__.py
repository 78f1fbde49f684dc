"""The open API: SensorThings first, then the other faces on the same store. Put together in `api.app`."""
