"""What plays a city: recordings, a synthetic one, faults and load. May drive every service."""
