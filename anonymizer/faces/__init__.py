"""Recognizable faces of head CT and MR, removed from all instances of a series (PS3.15 E.3.2)."""
