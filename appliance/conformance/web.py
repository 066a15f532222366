"""DICOMweb services (PS3.2 N.5.3)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from appliance.conformance.markdown import joined, named, status, table
from appliance.conformance.node import refusals
from dicom_node import transcoding
from dicom_node.dicomweb import frames, media, qido, stow
from dicom_node.dicomweb.representations import COMPRESSED, DICOM, MULTIPART, OCTETS
from dicom_node.dicomweb.storing import REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.conformance.node import Inspected, WebRoute

_TITLES: Final = {
    "qido": "Search transaction (QIDO-RS)",
    "stow": "Store transaction (STOW-RS)",
    "wado": "Retrieve transaction (WADO-RS): instances, metadata, bulk data",
    "frames": "Retrieve transaction (WADO-RS): frames, rendered, thumbnail",
}
# Statuses that are no refusals of a request as a whole.
_ANSWERED: Final = {"qido": (200,), "stow": (200, 202, 409)}
_PARAMETERS: Final = (
    ("keys of section 5.2", "by keyword or tag; what is not matched at a level is left out, with a warning"),
    ("`includefield`", "keywords, tags, or `all`: what the node keeps for search"),
    ("`limit`, `offset`", "at most `dicomweb.max_results` at once; a warning says that there is more"),
    (
        ", ".join(f"`{name}`" for name in sorted(qido._SWITCHES)),
        "only `false`; `true` is answered with a warning",
    ),
)
# What this node asks of DICOMweb peers.
CLIENTS: Final = {
    "qido": "studies are fetched from an archive; a result is read back; a person tests a peer",
    "wado": "studies are fetched from an archive: instances as stored",
    "stow": "a result is delivered; a person tests a peer",
}
_NOTES: Final = {
    "qido": f"""
- Media types: {", ".join(f"`{kind}`" for kind in qido.JSON_TYPES)}.
""",
    "wado": f"""
- Instances: `{MULTIPART}; type="{DICOM}"`; one alone also as `{DICOM}`. Without `transfer-syntax` in Accept
  they come in Explicit VR Little Endian, with `*` as stored, with a UID converted (section 5.5).
- Metadata: `{media.JSON}`, `application/json`; long binary values by BulkDataURI. No XML.
- Bulk data: `{OCTETS}`, alone or in `{MULTIPART}`.
- The file meta information is written anew.
""",
    "frames": f"""
- Frames: `{OCTETS}` decoded, or as stored or converted in {", ".join(f"`{kind}`" for kind in COMPRESSED)};
  several in `{MULTIPART}`.
- Rendered and thumbnail: {", ".join(f"`{kind}`" for kind in frames.PICTURES)}; parameters `window`,
  `viewport` (width and height; no part of a frame), `quality`. Of several instances or frames the middle one.
  A thumbnail fits into {frames.THUMBNAIL_SIDE} pixels.
""",
    "stow": f"""
- Request: `multipart/related; type="application/dicom"`. Metadata with bulk data apart are not taken.
- Answer: {", ".join(f"`{kind}`" for kind in stow.JSON_TYPES)}.
- Instances are durable before the answer names them; data set bytes stay as they are.
""",
}


def blocks(found: Inspected) -> dict[str, str]:
    """Return the services under the path of DICOMweb."""
    modules = list(dict.fromkeys(route.module for route in found.routes))
    provided = {_title(name): "yes" for name in modules}
    used = {_title(name): words for name, words in CLIENTS.items()}
    titles = dict.fromkeys((*provided, *used))
    rows = [(title, used.get(title, "no"), provided.get(title, "no")) for title in titles]
    return {
        "overview_web": table(("service", "user agent", "origin server"), rows),
        "converted": table(("transfer syntax", "from", "to"), _converted()),
        "web_services": joined(*(_service(module, found.routes) for module in modules)),
    }


def _converted() -> Iterable[tuple[str, str, str]]:
    sources = transcoding.UNCOMPRESSED | transcoding.DECODED
    targets = transcoding.PLAIN_TARGETS | transcoding.COMPRESSED_TARGETS
    for uid in sorted(sources | targets, key=lambda uid: [int(part) for part in uid.split(".")]):
        yield named(uid), "yes" if uid in sources else "no", "yes" if uid in targets else "no"


def _service(module: str, routes: Iterable[WebRoute]) -> str:
    mine = [route for route in routes if route.module == module]
    rows = [(f"`{route.method}`", f"`{route.path}`", f"`{route.right}`") for route in mine]
    codes = [*_ANSWERED.get(module, (200,)), *refusals(module), 500]
    extra = []
    if module == "qido":
        extra.append(table(("parameter", "support"), _PARAMETERS))
    if module == "stow":
        reasons = [(status(code), reason.value.replace("_", " ")) for reason, code in REASONS.items()]
        extra.append(table(("failure reason (0008,1197)", "an instance was not stored:"), reasons))
    return joined(
        f"#### {_title(module)}",
        table(("method", "resource", "right"), rows),
        _NOTES.get(module, ""),
        *extra,
        table(("status", "meaning"), [(f"`{code}`", HTTPStatus(code).phrase) for code in sorted(set(codes))]),
    )


def _title(module: str) -> str:
    return _TITLES.get(module, module)
