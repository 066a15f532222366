"""Errors of the anonymizer. No message holds a DICOM value."""


class AnonymizerError(Exception):
    """Base of all errors that the anonymizer raises itself."""


class UnusablePatientIDError(AnonymizerError):
    """A PatientID that cannot name one person: empty, a placeholder, or multi-valued."""

    code = "unusable_patient_id"


class SealError(AnonymizerError):
    """A sealed vault entry does not open with this key and context."""


class TableError(AnonymizerError):
    """A table of the package is missing or not as expected."""


class ProfileError(AnonymizerError):
    """A profile file is not one: an unknown option, rule or key."""


class VerdictError(AnonymizerError):
    """A person's decision that is none; the message names the field."""


class DecodingError(AnonymizerError):
    """The bytes are not the DICOM encoding that they claim to be (PS3.5, PS3.10)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StopError(AnonymizerError):
    """The instance cannot be released; a person has to look at it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
