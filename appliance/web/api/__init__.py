"""The JSON API under ``/api/v1``, with the rights of the panel."""
