"""Where the messages of a run between peers lie at the coordinator until whoever is to have them has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.db.coordinator import FinishedRound
from appliance.db.engine import reading
from appliance.federation.errors import CoordinatorError
from trainer.weights_io import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from appliance.federation.book import Book
    from trainer.federation.peering.record import Record
    from trainer.federation.peering.relay import Relay
    from trainer.weights_io import Array

_WHOLE = "whole"
_MESSAGE = "message"


@dataclass(frozen=True)
class Mailroom:
    """A folder of sites' models as others hold them, and of their messages.

    A file is on disk before the round is that names it, and stays until no site needs it; its name has the
    model's hash, so that a stale job replaces nothing.
    """

    folder: Path

    def keep(
        self,
        site: str,
        version: int,
        digest: str,
        model: Mapping[str, Array],
        message: Mapping[str, Array] | None,
    ) -> None:
        """Keep what a site told of a version: the model, and its message where that is another.

        Raises
        ------
        CoordinatorError
            If the disk does not take it: that is no fault of the site.
        """
        try:
            Stored.write(self._path(site, version, digest, _WHOLE), model)
            if message is not None:
                Stored.write(self._path(site, version, digest, _MESSAGE), message)
        except OSError as error:
            raise CoordinatorError(f"a site's message could not be kept ({error.strerror})") from error

    def model(self, record: Record, site: str, version: int) -> Stored:
        """Return a site's model of a version.

        Raises
        ------
        CoordinatorError
            If it is not what the record names.
        """
        digest = record.said[site, version]
        stored = Stored(self._path(site, version, digest, _WHOLE))
        if stored.sha256 != digest:
            raise CoordinatorError("a kept message of a site differs from the hash that it told")
        return stored

    def message(self, record: Record, site: str, to: str) -> Stored:
        """Return what is for a site of another's last round."""
        version = record.version(to)
        if (to, site) not in record.packed:
            return self.model(record, site, version)
        return Stored(self._path(site, version, record.said[site, version], _MESSAGE))

    def tidy(self, record: Record, relay: Relay) -> None:
        """Remove what nobody needs any more, once the record stands in the book."""
        needed = {
            self._path(site, version, digest, _WHOLE) for (site, version), digest in record.said.items()
        }
        for to in record.versions:
            version = record.version(to)
            needed |= {
                self._path(site, version, record.said[site, version], _MESSAGE)
                for site in relay.links(record, to)
                if (to, site) in record.packed
            }
        for path in set(self.folder.glob("*.safetensors")) - needed:
            path.unlink(missing_ok=True)

    def _path(self, site: str, version: int, digest: str, what: str) -> Path:
        return self.folder / f"{site}-{version:05d}-{digest}-{what}.safetensors"


def start_of(book: Book, run_id: str) -> Stored:
    """Return the model that a run started from; raises CoordinatorError where it is not what was written."""
    query = select(FinishedRound).where(FinishedRound.run_id == run_id, FinishedRound.number == 0)
    with reading(book.engine) as session:
        row = session.scalar(query)
    if row is None:
        raise CoordinatorError("the run has no initial model")
    stored = Stored(book.root / row.checkpoint_path)
    if stored.sha256 != row.model_sha256:
        raise CoordinatorError("the run's initial model differs from its hash")
    return stored
