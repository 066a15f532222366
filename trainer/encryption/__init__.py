"""Updates that only the sites can read: CKKS, with a key that the coordinator never has.

``spec`` says what a plan names, ``ckks`` wraps the scheme, ``model`` says which numbers of a model travel
how. The scheme's library loads with ``ckks`` and ``model`` alone.
"""

from trainer.encryption.spec import ENCRYPTED, Encryption, EncryptionError

__all__ = ["ENCRYPTED", "Encryption", "EncryptionError"]
