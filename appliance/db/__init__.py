"""Databases of the zones and of the coordinator."""
