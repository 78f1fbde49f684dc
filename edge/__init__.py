"""What runs on a gateway: drivers, the outbox on disk, the agent. Needs neither Kafka nor PostgreSQL nor numpy."""
