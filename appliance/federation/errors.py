"""Errors of the federation at this appliance."""

from __future__ import annotations

from appliance.errors import ApplianceError


class FederationError(ApplianceError):
    """Base of the errors here."""


class ProvisioningError(FederationError):
    """A federation cannot be set up as asked."""


class EnrolmentError(FederationError):
    """A code, a request for a certificate, or an answer to one is not what it has to be."""


class CoordinatorAwayError(FederationError):
    """The coordinator cannot be reached now."""


class StrangeRootError(FederationError):
    """Whoever answers is not the coordinator that the code, or the root certificate, names."""


class MembershipError(FederationError):
    """A site is not what it would have to be: a member, an invited one, the one with this key."""


class CoordinatorError(FederationError):
    """The coordinator's folder or database is not as expected."""


class ReleaseError(FederationError):
    """A file of a round is not what it should be: an update must not leave, a global model not stay."""


class SiteServiceError(FederationError):
    """The site's research zone could not be asked, or refused the request.

    Parameters
    ----------
    message : str
        What happened; no value of a patient.
    retryable : bool
        Whether asking again later makes sense.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable
