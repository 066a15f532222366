"""Alembic's entry for the research database."""

from appliance.db.migrate import run_environment

run_environment("research")
