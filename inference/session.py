"""A model in memory: loaded once, asked many times."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state

from inference.errors import SessionError

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import ModelCard
    from inference.package import Package

_RUNTIME_ERRORS: Final = (  # the runtime's own errors share no base class
    runtime_state.DeviceReset,
    runtime_state.EPFail,
    runtime_state.EngineError,
    runtime_state.Fail,
    runtime_state.InvalidArgument,
    runtime_state.InvalidGraph,
    runtime_state.InvalidProtobuf,
    runtime_state.ModelLoaded,
    runtime_state.NoModel,
    runtime_state.NoSuchFile,
    runtime_state.NotImplemented,
    runtime_state.RuntimeException,
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
RUN_TIMEOUT_S: Final = 120.0
_ROUNDING: Final = 1e-6
_SUM_ROUNDING: Final = 1e-3


class ModelSession:
    """An ONNX session on the CPU that answers probabilities, or differences.

    Parameters
    ----------
    package : Package
        Verified; its bytes are read once.
    threads : int
        Of the operators; operators run one after the other.
    timeout_s : float
        Longest run of one batch; a model may loop for as long as its input says.

    Raises
    ------
    SessionError
        ``session.load`` if the model cannot be loaded.
    """

    def __init__(self, package: Package, threads: int = 1, timeout_s: float = RUN_TIMEOUT_S) -> None:
        self.card: ModelCard = package.card
        self.package_sha256 = package.sha256
        self._timeout_s = timeout_s
        ort.set_default_logger_severity(4)  # its texts quote names out of the model
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # By its path: of bytes the runtime's Python class would keep a copy beside the session's own.
            path = str(package.model_path)
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (*_RUNTIME_ERRORS, OSError) as error:
            raise SessionError(
                "session.load", f"the model cannot be loaded ({type(error).__name__})"
            ) from error

    def run(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the probability of each finding of the card, or of each class at every voxel, or residuals.

        Parameters
        ----------
        batch : ndarray
            float32, shape (n, 1, *size), from :func:`inference.preprocessing.prepare` or
            :func:`inference.volumes.prepare_volume`.

        Returns
        -------
        ndarray
            float32, shape (n, findings) or (n, 1 + segments, *size), 0.0 to 1.0; of a model of anomalies
            (n, 1, *size), 0.0 or more: how far each pixel is from what the model makes of it.

        Raises
        ------
        SessionError
            ``session.input``, ``session.timeout``, ``session.run``, or ``session.output``: not what the card
            declares.
        """
        wanted = (1, *self.card.input.size)
        if batch.dtype != np.float32 or batch.shape[1:] != wanted:
            raise SessionError("session.input", f"expected float32 of shape (n, *{wanted})")
        options = ort.RunOptions()
        watch = threading.Timer(self._timeout_s, setattr, (options, "terminate", True))
        watch.daemon = True
        watch.start()
        try:
            (answer,) = self._session.run([self.card.output.name], {self.card.input.name: batch}, options)
        except _RUNTIME_ERRORS as error:
            if options.terminate:
                raise SessionError("session.timeout", f"no answer within {self._timeout_s:g} s") from error
            raise SessionError("session.run", f"the model failed ({type(error).__name__})") from error
        finally:
            watch.cancel()
        return self._probabilities(answer, len(batch))

    def _probabilities(self, answer: Any, count: int) -> npt.NDArray[np.float32]:
        wanted = (count, *self.card.answer_shape)
        if not isinstance(answer, np.ndarray) or answer.shape != wanted or answer.dtype != np.float32:
            raise SessionError("session.output", f"expected float32 of shape {wanted}")
        if not np.isfinite(answer).all():
            raise SessionError("session.output", "expected finite numbers")
        if self.card.threshold is not None:
            return _residuals(answer)
        if self.card.segmenting:
            return _shares(answer)
        if self.card.output.activation == "sigmoid":
            wide = np.clip(answer.astype(np.float64), -80.0, 80.0)
            return np.asarray(1.0 / (1.0 + np.exp(-wide)), dtype=np.float32)
        if (answer < 0).any() or (answer > 1).any():
            raise SessionError("session.output", "expected probabilities, 0 to 1")
        return answer


def _residuals(answer: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return differences, checked to be such: a model may also answer what it makes of the picture."""
    if answer.min(initial=0) < -_ROUNDING:
        raise SessionError("session.output", "expected differences, 0 or more")
    return answer.clip(0)


def _shares(answer: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return probabilities of classes, checked to be such: a model may also answer logits."""
    if answer.min(initial=0) < -_ROUNDING or np.abs(answer.sum(axis=1) - 1).max(initial=0) > _SUM_ROUNDING:
        raise SessionError("session.output", "expected probabilities that sum to 1 at every voxel")
    return answer.clip(0, 1)
