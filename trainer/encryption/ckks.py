"""The scheme CKKS over vectors of real numbers, as the library TenSEAL (Microsoft SEAL) has it.

Ring dimension 8192 and a modulus of 160 bits: 128 bits of security (HomomorphicEncryption.org standard,
2018, table 1: at most 218 bits). One multiplication, by each site's share, fits; sums cost no level.

References
----------
Cheon et al., Homomorphic Encryption for Arithmetic of Approximate Numbers, ASIACRYPT 2017;
Li and Micciancio, On the Security of Homomorphic Encryption on Approximate Numbers, EUROCRYPT 2021: who
sees decrypted numbers beside their ciphertexts may learn the key, so the coordinator sees none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import tenseal
from numpy.typing import NDArray

from trainer.encryption.spec import EncryptionError
from trainer.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Sequence

Vector = NDArray[np.float64]
Bytes = NDArray[np.uint8]

SLOTS: Final = 4096  # numbers in one ciphertext
MAX_CIPHERTEXT: Final = 300_000  # bytes; 8192 x 2 x 100 bits, and a header
_DEGREE: Final = 2 * SLOTS
_MODULI: Final = (60, 40, 60)
_SCALE: Final = 2.0**40
_FRESH, _SCALED = 2, 1  # primes of a ciphertext before and after the one multiplication
# What the library raises for bytes that are no ciphertext of these parameters.
_MALFORMED: Final = (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError)


def new_secret() -> bytes:
    """Make a secret key of the sites."""
    return _serialized(_new(), secret=True)


@dataclass(frozen=True)
class Key:
    """A context of the scheme; the coordinator's has no secret, and so neither encrypts nor decrypts."""

    context: tenseal.Context

    @classmethod
    def of_sites(cls, secret: bytes) -> Key:
        """Read a secret key, which another site made and which is not trusted.

        Raises
        ------
        EncryptionError
            If it is none, or of other parameters than these.
        """
        try:
            context = tenseal.context_from(secret)
            fits = context.has_secret_key() and _serialized(context) == _parameters()
        except _MALFORMED as error:
            raise EncryptionError("the key cannot be read; expected one of this scheme") from error
        if not fits:
            raise EncryptionError("the key is of other parameters; expected ring dimension 8192, 128 bits")
        context.global_scale = _SCALE
        return cls(context)

    @classmethod
    def of_coordinator(cls) -> Key:
        """Return the context without any key."""
        context = tenseal.context_from(_parameters())
        context.global_scale = _SCALE
        return cls(context)

    def encrypt(self, numbers: Vector) -> Bytes:
        """Encrypt at most ``SLOTS`` numbers; fewer are filled up with zeros."""
        filled = np.zeros(SLOTS)
        filled[: numbers.size] = numbers
        return _bytes(tenseal.ckks_vector(self.context, filled))

    def decrypt(self, ciphertext: Bytes) -> Vector:
        """Decrypt ``SLOTS`` numbers; raises UpdateError for what is no scaled sum of ciphertexts."""
        vector = self._read(ciphertext, _SCALED)
        try:
            return np.asarray(vector.decrypt(), dtype=np.float64)
        except _MALFORMED as error:
            raise UpdateError("cipher", "a ciphertext cannot be decrypted with this key") from error

    def check(self, ciphertext: Bytes) -> None:
        """Raise UpdateError for what is no fresh ciphertext of this scheme."""
        self._read(ciphertext, _FRESH)

    def weighted_sum(
        self, ciphertexts: Sequence[Bytes], factors: Sequence[float], onto: Bytes | None
    ) -> Bytes:
        """Return the sum of fresh ciphertexts, each times its factor, added to an earlier such sum."""
        total = None if onto is None else self._read(onto, _SCALED)
        for one, factor in zip(ciphertexts, factors, strict=True):
            scaled = self._read(one, _FRESH) * factor
            total = scaled if total is None else total + scaled
        if total is None:
            raise UpdateError("cipher", "nothing to sum; expected a ciphertext")
        return _bytes(total)

    def _read(self, ciphertext: Bytes, primes: int) -> tenseal.CKKSVector:
        if ciphertext.dtype != np.uint8 or ciphertext.ndim != 1 or ciphertext.size > MAX_CIPHERTEXT:
            raise UpdateError("cipher", f"expected a ciphertext of at most {MAX_CIPHERTEXT} bytes")
        try:
            vector = tenseal.ckks_vector_from(self.context, ciphertext.tobytes())
            [inner], size = vector.ciphertext(), vector.size()
            fits = (inner.size(), inner.coeff_modulus_size(), inner.scale) == (2, primes, _SCALE)
        except _MALFORMED as error:
            raise UpdateError("cipher", "a ciphertext cannot be read; expected CKKS") from error
        if not fits or size != SLOTS or inner.is_transparent():
            raise UpdateError("cipher", f"a ciphertext of another form; expected {SLOTS} numbers")
        return vector


def _new() -> tenseal.Context:
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        _DEGREE,
        coeff_mod_bit_sizes=list(_MODULI),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = _SCALE
    return context


@cache
def _parameters() -> bytes:
    """Return the scheme's parameters without any key, as every context of it has them."""
    return _serialized(_new())


def _serialized(context: tenseal.Context, *, secret: bool = False) -> bytes:
    return bytes(
        context.serialize(
            save_public_key=False, save_secret_key=secret, save_galois_keys=False, save_relin_keys=False
        )
    )


def _bytes(vector: tenseal.CKKSVector) -> Bytes:
    return np.frombuffer(vector.serialize(), dtype=np.uint8)
