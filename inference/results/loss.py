"""Once lossy, always lossy (PS3.3 C.7.6.1.1.5): what is made of such pictures says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydicom import Dataset

_LOSSY_SYNTAXES: Final = frozenset(
    {"50", "51", "81", "91", "93", "203"}  # 1.2.840.10008.1.2.4.N (PS3.5 section 8.2)
)


def is_lossy(source: Dataset) -> bool:
    """Whether the pixels of an instance were ever compressed with loss, by its syntax or its own word."""
    meta: Any = getattr(source, "file_meta", None)
    syntax = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    by_syntax = syntax.startswith("1.2.840.10008.1.2.4.") and syntax.rpartition(".")[2] in _LOSSY_SYNTAXES
    return by_syntax or str(source.get("LossyImageCompression") or "") == "01"
