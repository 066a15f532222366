"""Celery tasks: thin shells, one file for each queue."""
