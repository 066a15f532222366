"""Errors of the inference package; each carries a stable code and a message without patient values."""


class InferenceError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    code : str
        Stable, machine-readable reason such as ``pixel.decode``.
    message : str
        What, where, what was expected; never a value from a DICOM file.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class PreprocessingError(InferenceError):
    """The pixels of an instance cannot become model input."""


class PackageError(InferenceError):
    """A model package is refused."""


class SessionError(InferenceError):
    """A model cannot be run, or answered something other than its card declares."""


class ResultError(InferenceError):
    """A DICOM result cannot be made from these instances."""


class NotApplicableError(ResultError):
    """A model has nothing to say of a study: nothing in it is of the form that the model reads."""
