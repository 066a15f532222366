"""A running node with a reading room beside it, and a patient whom its models have not seen."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import dcmread
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import children, cli, health, node
from appliance.db.clinical import ModelState, ModelVersion
from appliance.db.engine import reading
from appliance.db.peers import Delivery
from tests.dicom_node.support import kill_group, wait_until
from tests.e2e.peers import running_storescp, storescu
from tests.trainer import masked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom import Dataset

    from appliance.node import ClinicalZone
    from tests.appliance.training_node import TrainingNode

PASSWORD = "correct horse battery"
MORE_SETTINGS = "\n[dicom]\nport = 0\n[assembly]\nquiet_period_s = 1\n"


@dataclass(frozen=True)
class Hospital:
    """The node's two zones, the reading room's folder, and the patient's study."""

    site: TrainingNode
    clinical: ClinicalZone
    reading_room: Path
    patient: list[Dataset]
    files: list[Path]

    def cloister(self, *words: object, text: str | None = None) -> str:
        """Run a command of the product; return what it prints."""
        arguments = [*map(str, words), "--config", str(self.site.config)]
        done = CliRunner().invoke(cli.build(), arguments, input=text)
        assert done.exit_code == 0, done.output
        return done.stdout

    def states(self, row: type[ModelVersion | Delivery]) -> list[str]:
        """Return the states of all models or deliveries."""
        with reading(self.clinical.engine) as session:
            return list(session.scalars(select(row.state)))

    def arrived(self) -> dict[str, Dataset]:
        """Return what the reading room has, by SOP class."""
        return {str(ds.SOPClassUID): ds for ds in map(dcmread, self.reading_room.iterdir())}

    def wait_for_the_final_model(self) -> None:
        """Wait until the node is well and its model is exported, taken in and evaluated."""
        settings = self.site.zone.settings
        wait_until(lambda: health.overall(settings).well, "the node is well", 90)
        wait_until(lambda: self.states(ModelVersion) == [ModelState.EVALUATED], "the model is evaluated", 60)

    def send_the_patient(self, results: int) -> None:
        """Send the study as a scanner does; wait until so many results are delivered."""
        port = int((node.run_dir(self.site.zone.settings) / "ports" / "scp").read_text())
        storescu(self.files, "SCANNER", "CLOISTER", port)
        wait_until(lambda: self.states(Delivery) == ["delivered"] * results, "results are delivered", 60)


@contextmanager
def running(site: TrainingNode, folder: Path, patient: list[Dataset]) -> Iterator[Hospital]:
    """Run a node whose final round waits, with a reading room to which studies of MR go."""
    with site.config.open("a", encoding="utf-8") as file:
        file.write(MORE_SETTINGS)
    with running_storescp(folder / "reading-room") as port:
        files = masked.save(folder / "study", patient)
        clinical = node.open_clinical(site.zone.settings)
        found = Hospital(site, clinical, folder / "reading-room", patient, files)
        _introduce(found, port)
        argv = [sys.executable, "-m", "appliance.cli", "up", "--config", str(site.config)]
        process = subprocess.Popen(
            argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield found
        finally:
            for pid in children.descendants_of(process.pid):
                children.send_signal(pid, signal.SIGKILL)
            kill_group(process)
            clinical.engine.dispose()


def _introduce(hospital: Hospital, reading_room_port: int) -> None:
    hospital.cloister("user", "add", "ruth", "--role", "admin", "--password-stdin", text=PASSWORD)
    hospital.cloister("peer", "add", "scanner", "SCANNER", "127.0.0.1", "--may-send")
    room = ("reading-room", "READINGROOM", "127.0.0.1", reading_room_port)
    hospital.cloister("peer", "add", *room, "--destination")
    rule = ("--modality", "MR", "--inference", "--destination", "reading-room", "--enable")
    hospital.cloister("rule", "add", "brains", *rule)
