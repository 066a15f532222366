"""Errors of the trainer. A message says what, where and what was expected; never a value of the data."""


class TrainerError(Exception):
    """Base of all errors that the trainer raises itself."""


class TaskError(TrainerError):
    """A task description is wrong."""


class LabelFileError(TrainerError):
    """A label file cannot be read at all (wrong rows are reported as problems instead)."""


class DatasetError(TrainerError):
    """No dataset can be built that could be trained on."""


class WeightsError(TrainerError):
    """A weights file cannot be read or written."""


class UnfitModelError(WeightsError):
    """A global model has other tensors than its task's network."""


class StrategyError(TrainerError):
    """Contributions cannot be aggregated."""


class UpdateError(TrainerError):
    """A local update does not fit the global model or holds numbers that are not finite.

    Parameters
    ----------
    code : str
        ``names``, ``shape``, ``dtype``, ``not_finite`` or ``norm``.
    message : str
        What is wrong and where.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SimulationError(TrainerError):
    """A simulation cannot be run, or the engine ended without its result; ``log`` holds its last words."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class ExportError(TrainerError):
    """The exported model does not compute what the trained one computes."""
