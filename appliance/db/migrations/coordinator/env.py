"""Alembic's entry for the coordinator database."""

from appliance.db.migrate import run_environment

run_environment("coordinator")
