"""Alembic scripts of the coordinator database."""
