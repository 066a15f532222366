"""Errors of the appliance."""


class ApplianceError(Exception):
    """Base of all errors that the appliance raises itself."""


class SettingsError(ApplianceError):
    """The configuration is wrong; the message names every bad field."""
