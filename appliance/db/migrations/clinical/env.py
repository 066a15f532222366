"""Alembic's entry for the clinical database."""

from appliance.db.migrate import run_environment

run_environment("clinical")
