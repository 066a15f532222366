"""Alembic scripts, one folder for each database."""
