"""De-identification after DICOM PS3.15 Annex E: rules as data, an engine, an independent check."""
