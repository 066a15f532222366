"""Alembic scripts of the research database."""
