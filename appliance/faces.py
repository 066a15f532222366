"""Faces of heads are found by whole series: which files of a study make one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from anonymizer.options import Option
from appliance.db.clinical import Instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sqlalchemy.orm import Session

    from anonymizer.faces.series import Faces
    from anonymizer.profiles import Profile


def finder(
    profile: Profile, root: Path, paths: Iterable[str], beat: Callable[[], None] = lambda: None
) -> Faces | None:
    """Return what finds faces in files of the clinical zone; None when the profile does not ask for it.

    Parameters
    ----------
    profile : Profile
        What decides.
    root : Path
        The clinical zone's folder.
    paths : iterable of str
        All instances of the series that will be asked for, below ``root``.
    beat : callable
        Called for each file that is read: a sign of life.
    """
    if Option.CLEAN_FACES not in profile.options:
        return None
    from anonymizer.faces.series import Faces  # noqa: PLC0415 - for profiles that ask for it

    return Faces.of_paths([root / path for path in paths], beat)


def paths_beside(session: Session, instance_id: str) -> list[str]:
    """Return the paths of all instances of an instance's series."""
    series = select(Instance.series_id).where(Instance.id == instance_id).scalar_subquery()
    found = select(Instance.path).where(Instance.series_id == series).order_by(Instance.id)
    return [str(path) for path in session.scalars(found)]
