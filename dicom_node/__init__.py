"""DICOM in and out: the storage SCP, its durable inbox, study assembly, and the storage SCU."""
