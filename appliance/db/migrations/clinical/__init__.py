"""Alembic scripts of the clinical database."""
