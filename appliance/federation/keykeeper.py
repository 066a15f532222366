"""The coordinator's part in the sites' key of encrypted updates: choose one envelope, keep it, hand it on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance import durable, logs
from appliance.federation import envelope
from appliance.federation.envelope import EnvelopeError
from appliance.federation.errors import CoordinatorError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from appliance.federation.answers import Answer
    from trainer.federation.plan import Plan

_LOG = logs.logger(__name__)


@dataclass
class KeyKeeper:
    """The envelope of one run; ``text`` is empty while no site has offered one, or where none is needed."""

    plan: Plan
    path: Path
    text: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Read what an earlier job of the run chose."""
        if self.plan.encryption is not None and self.path.is_file():
            self.text = envelope.read(self.path.read_text(encoding="ascii"), self.plan).text

    def choose(self, answers: Sequence[Answer]) -> None:
        """Take the envelope that most sites offer; it is on disk before any site gets it.

        Raises
        ------
        CoordinatorError
            If the plan needs a key and nobody offered one that its sites would take.
        """
        if self.plan.encryption is None or self.text:
            return
        offered: Counter[str] = Counter()
        for answer in answers:
            if answer.key and not answer.said.code:
                try:
                    offered[envelope.read(answer.key, self.plan).text] += 1
                except EnvelopeError as error:
                    _LOG.warning("encryption.key_refused", site=answer.site, reason=str(error))
        if not offered:
            raise CoordinatorError("no site offered a key of encrypted updates")
        [(text, _)] = offered.most_common(1)
        durable.write_whole(self.path, text.encode("ascii"))
        self.text = text
