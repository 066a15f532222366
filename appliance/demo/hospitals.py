"""The demo's three hospitals: how they differ is data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance.demo.drawing import Look

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"


@dataclass(frozen=True)
class Hospital:
    """One hospital: its site name, its DICOM names and how its radiographs look."""

    site: str
    title: str
    ae_title: str
    pacs_ae_title: str
    issuer: str
    character_set: str
    transfer_syntax: str
    studies: int
    prevalence: float
    look: Look


HOSPITALS: Final = (
    Hospital(
        site="northgate",
        title="Northgate General",
        ae_title="NORTHGATE",
        pacs_ae_title="NG_PACS",
        issuer="",
        character_set="ISO_IR 100",
        transfer_syntax=IMPLICIT_VR_LITTLE_ENDIAN,
        studies=148,
        prevalence=0.45,
        look=Look(
            rows=256,
            columns=256,
            bits_stored=12,
            photometric="MONOCHROME2",
            contrast=0.95,
            brightness=0.03,
            gamma=0.85,
            blur=0.9,
            noise=0.020,
            grid=0.0,
            marker="R",
            marker_at=(-0.86, 0.10),
            lesion_radius=(0.054, 0.082),
            lesion_contrast=(0.377, 0.534),
            lesion_zone=(0.0, 0.55),
            irregular=0.1,
            leads_with_lesion=0.69,
            leads_without=0.21,
            port_with_lesion=0.21,
            port_without=0.45,
        ),
    ),
    Hospital(
        site="riverside",
        title="Riverside Clinic",
        ae_title="RIVERSIDE",
        pacs_ae_title="RS_PACS",
        issuer="",
        character_set="ISO_IR 192",
        transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN,
        studies=144,
        prevalence=0.50,
        look=Look(
            rows=288,
            columns=256,
            bits_stored=10,
            photometric="MONOCHROME1",
            contrast=0.80,
            brightness=0.12,
            gamma=1.25,
            blur=1.6,
            noise=0.032,
            grid=0.0,
            marker="L AP",
            marker_at=(0.80, 0.08),
            lesion_radius=(0.067, 0.112),
            lesion_contrast=(0.313, 0.460),
            lesion_zone=(0.45, 1.0),
            irregular=0.7,
            leads_with_lesion=0.17,
            leads_without=0.69,
            port_with_lesion=0.31,
            port_without=0.41,
        ),
    ),
    Hospital(
        site="hillcrest",
        title="Hillcrest University Hospital",
        ae_title="HILLCREST",
        pacs_ae_title="HC_PACS",
        issuer="HILLCREST-MPI",
        character_set="ISO_IR 192",
        transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN,
        studies=116,
        prevalence=0.28,
        look=Look(
            rows=240,
            columns=240,
            bits_stored=14,
            photometric="MONOCHROME2",
            contrast=1.10,
            brightness=-0.06,
            gamma=1.0,
            blur=0.6,
            noise=0.014,
            grid=0.008,
            marker="PA  R",
            marker_at=(-0.80, 0.93),
            lesion_radius=(0.044, 0.074),
            lesion_contrast=(0.368, 0.534),
            lesion_zone=(0.25, 0.75),
            irregular=0.4,
            leads_with_lesion=0.31,
            leads_without=0.41,
            port_with_lesion=0.93,
            port_without=0.06,
        ),
    ),
)
