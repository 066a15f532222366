"""De-identification after DICOM PS3.15 Annex E: rules as data, an engine, an independent check.

The names below are the public ones; they are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anonymizer.batch.run import deidentify_tree
    from anonymizer.engine import Context, Quarantined, Released, deidentify, deidentify_file
    from anonymizer.errors import AnonymizerError, ProfileError
    from anonymizer.faces.series import Faces
    from anonymizer.keys import ProjectKeys
    from anonymizer.profiles import Profile, load_profile

__all__ = [
    "AnonymizerError",
    "Context",
    "Faces",
    "Profile",
    "ProfileError",
    "ProjectKeys",
    "Quarantined",
    "Released",
    "deidentify",
    "deidentify_file",
    "deidentify_tree",
    "load_profile",
]
_HOME: Final = {
    "AnonymizerError": "errors",
    "Context": "engine",
    "Faces": "faces.series",
    "Profile": "profiles",
    "ProfileError": "errors",
    "ProjectKeys": "keys",
    "Quarantined": "engine",
    "Released": "engine",
    "deidentify": "engine",
    "deidentify_file": "engine",
    "deidentify_tree": "batch.run",
    "load_profile": "profiles",
}


def __getattr__(name: str) -> object:
    """Load a public name (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
