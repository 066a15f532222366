"""What leaves a site in a round between peers, and what comes to it: arrays of one file, by their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trainer.errors import UpdateError
from trainer.federation.peering import MAIL
from trainer.federation.peering.record import (
    check_site,
    count_array,
    hash_array,
    read_count,
    read_hash,
)
from trainer.strategies.streams import EachArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trainer.weights_io import Array, Weights

_SAID: Final = "peer:said"
_VERSION: Final = "peer:version"
_KNOWN: Final = "peer:known:"
_TO: Final = "peer:to:"
_OURS: Final = "peer:"
_START: Final = f"{MAIL}start:"
_THERE: Final = f"{MAIL}there:"
_FROM: Final = f"{MAIL}from:"
_ORDER_TO: Final = "to:"


@dataclass(frozen=True, eq=False)
class Letter:
    """What leaves a site.

    Parameters
    ----------
    said : str
        Hash of what others may hold of the site once this counts.
    version : int
        Of that model.
    known : Mapping
        By other site, the version that the site has taken over; of ``braintorrent`` alone.
    to : tuple of str
        Whom the message is for.
    message : Mapping
        Arrays for others: a model or a difference; empty where only the hash leaves.
    """

    said: str
    version: int
    known: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    to: tuple[str, ...] = ()
    message: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))

    def arrays(self) -> Weights:
        """Return it as the arrays of a file."""
        return {
            **self.message,
            _SAID: hash_array(self.said),
            _VERSION: count_array(self.version),
            **{_KNOWN + site: count_array(number) for site, number in self.known.items()},
            **{_TO + site: count_array(1) for site in self.to},
        }


def read_letter(arrays: Mapping[str, Array]) -> Letter:
    """Read what :meth:`Letter.arrays` made; the message's arrays are read when they are asked for.

    Raises
    ------
    UpdateError
        If it is no letter.
    """
    if _SAID not in arrays or _VERSION not in arrays:
        raise UpdateError("names", "expected a site's word on its own model")
    known, to, message = {}, [], []
    for name in arrays:
        if name.startswith(_KNOWN):
            known[check_site(name.removeprefix(_KNOWN))] = read_count(arrays[name])
        elif name.startswith(_TO):
            to.append(check_site(name.removeprefix(_TO)))
        elif not name.startswith(_OURS):
            message.append(name)
        elif name not in {_SAID, _VERSION}:
            raise UpdateError("names", "expected a site's word on its own model, and nothing else beside it")
    return Letter(
        read_hash(arrays[_SAID]),
        read_count(arrays[_VERSION]),
        known,
        tuple(sorted(to)),
        EachArray(message, arrays.__getitem__),
    )


def addressees(names: Iterable[str]) -> tuple[str, ...]:
    """Return for whom a file is that leaves, by the names of its arrays; nobody for other strategies'."""
    return tuple(sorted(name.removeprefix(_TO) for name in names if name.startswith(_TO)))


@dataclass(frozen=True, eq=False)
class Mail:
    """What comes to a site beside the record.

    Parameters
    ----------
    there : tuple of str
        Who is asked to take part in the round; empty for a final model.
    messages : Mapping
        By sender, its model or the difference to what is held of it.
    start : Mapping
        The model that all started from, for a site of which nothing counted yet; empty for others.
    """

    there: tuple[str, ...] = ()
    messages: Mapping[str, Mapping[str, Array]] = field(default_factory=lambda: MappingProxyType({}))
    start: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))

    def arrays(self) -> Weights:
        """Return it as arrays that travel beside a record's."""
        found: Weights = {_START + name: self.start[name] for name in self.start}
        found |= {_THERE + site: count_array(1) for site in self.there}
        for site, message in self.messages.items():
            found |= {f"{_FROM}{site}:{name}": message[name] for name in message}
        return found


def read_mail(arrays: Mapping[str, Array]) -> Mail:
    """Read what :meth:`Mail.arrays` made; raises UpdateError for anything else."""
    there: list[str] = []
    start: Weights = {}
    messages: dict[str, Weights] = {}
    for name in arrays:
        if name.startswith(_THERE):
            there.append(check_site(name.removeprefix(_THERE)))
        elif name.startswith(_START):
            start[name.removeprefix(_START)] = arrays[name]
        elif name.startswith(_FROM):
            site, _, inner = name.removeprefix(_FROM).partition(":")
            messages.setdefault(check_site(site), {})[inner] = arrays[name]
        else:
            raise UpdateError("names", "mail of a round: expected messages of other sites")
    return Mail(tuple(sorted(there)), messages, start)


def order_to_send(record: Mapping[str, Array], to: str) -> Weights:
    """Return the arrays that ask a site to send its model: the record, and for whom it is."""
    return {**record, _ORDER_TO + to: count_array(1)}


def read_order_to_send(arrays: Mapping[str, Array]) -> tuple[Weights, str]:
    """Return the record's arrays and for whom a model is asked; raises UpdateError for anything else."""
    to = [name.removeprefix(_ORDER_TO) for name in arrays if name.startswith(_ORDER_TO)]
    if len(to) != 1:
        raise UpdateError("names", "a model to send: expected one site that it is for")
    rest = {name: arrays[name] for name in arrays if not name.startswith(_ORDER_TO)}
    return rest, check_site(to[0])
