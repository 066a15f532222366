"""What is particular to a patient and a project while an instance is de-identified."""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from anonymizer import uids
from anonymizer.options import Option
from anonymizer.subject import Subject

if TYPE_CHECKING:
    from anonymizer.keys import ProjectKeys
    from anonymizer.profiles import Profile

_MACHINE_BYTES: Final = 6


@dataclass(frozen=True)
class Patient:
    """The keys of the project, the days that dates move back, and what the data set says of persons."""

    keys: ProjectKeys
    shift_days: int
    profile: Profile
    subject: Subject = field(default_factory=Subject)

    @property
    def keeps_private(self) -> bool:
        """Whether any private attribute may stay."""
        return Option.SAFE_PRIVATE in self.profile.options or bool(self.profile.by_private)

    def uid(self, original: str) -> str:
        """Return the UID that stands for one of the patient's."""
        return original if Option.UIDS in self.profile.options else uids.map_uid(self.keys, original)

    def machine(self, ae_title: str) -> str:
        """Return a name that stands for a machine's AE title: always the same, and telling nothing."""
        if not ae_title:
            return ""
        digest = hmac.new(self.keys.uid, b"machine\0" + ae_title.encode("utf-8"), sha256).digest()
        return "M" + base64.b32encode(digest[:_MACHINE_BYTES]).decode("ascii").rstrip("=")
