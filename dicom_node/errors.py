"""Errors of the DICOM node. Messages say what and where, never a value of the data set."""


class DICOMNodeError(Exception):
    """Base of all errors that this package raises itself."""


class InboxError(DICOMNodeError):
    """The inbox cannot be used as asked."""


class InboxFullError(InboxError):
    """There is no room for the instance now; the sender may try again (0xA700)."""


class InstanceTooLargeError(InboxError):
    """The instance is larger than this node takes."""


class HeaderError(DICOMNodeError):
    """A stored instance that cannot be filed; ``code`` is the reason for the quarantine."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
