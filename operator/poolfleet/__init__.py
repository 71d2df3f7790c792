"""Poolfleet: PgPool resources become fleets of PgBouncer pods that never exceed the database's budget."""

__version__ = "0.1.0"
