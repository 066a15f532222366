"""Files whose tests take longest, the longest first: what begins last is short and nobody waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parent
LONGEST: Final = (
    "e2e/test_demo.py",
    "e2e/test_federation_faults.py",
    "appliance/federation/test_federation_e2e.py",
    "appliance/federation/test_many_sites_e2e.py",
    "e2e/test_two_hospitals.py",
    "e2e/test_consortium.py",
    "appliance/federation/test_peers_e2e.py",
    "appliance/test_receivers.py",
    "appliance/federation/test_encrypted_e2e.py",
    "appliance/web/test_browser.py",
    "appliance/test_worker.py",
    "appliance/federation/test_dialect.py",
    "appliance/web/test_viewer_browser.py",
    "appliance/test_supervisor.py",
    "appliance/test_receiving.py",
    "appliance/test_delivery_destinations.py",
    "appliance/test_fetching.py",
    "e2e/test_two_users.py",
    "appliance/test_training_simulate.py",
    "appliance/test_training.py",
    "anonymizer/test_burnt_in.py",
    "anonymizer/test_faces.py",
    "appliance/federation/test_swarm_e2e.py",
    "anonymizer/batch/test_interruptions.py",
    "dicom_node/test_scp_tls.py",
    "trainer/test_peer_simulation.py",
    "dicom_node/test_scp.py",
    "appliance/test_retention.py",
    "appliance/test_serving.py",
    "anonymizer/test_command.py",
    "appliance/consortium/test_sharing.py",
    "anonymizer/test_planting.py",
    "deploy/test_install.py",
    "appliance/web/test_review_pages.py",
    "e2e/test_membership.py",
    "appliance/web/test_vault_page.py",
    "appliance/web/test_regions_pages.py",
    "trainer/federation/peering/test_rounds.py",
    "demo/test_crew.py",
    "appliance/test_dimse_retrieval.py",
    "dicom_node/test_extended_negotiation.py",
    "appliance/federation/test_segmentation_e2e.py",
    "appliance/test_assembly.py",
    "trainer/test_engine.py",
    "dicom_node/test_retrieve_scu.py",
    "e2e/test_served_anomalies.py",
    "appliance/test_peering.py",
    "appliance/test_up.py",
    "appliance/test_catalogue.py",
    "anonymizer/test_scoring.py",
    "anonymizer/test_real_data.py",
    "appliance/test_engine_network.py",
    "appliance/test_heartbeat.py",
    "appliance/test_faults.py",
    "appliance/test_imports.py",
    "appliance/test_long_exports.py",
    "appliance/test_research_agent.py",
)
_RANK: Final = {TESTS / name: rank for rank, name in enumerate(LONGEST)}


def rank(path: Path) -> int:
    """Return when a file begins; those that are not listed begin last, in their own order."""
    return _RANK.get(path, len(LONGEST))
