"""What PostgreSQL understands."""
