"""Results of inference as DICOM instances that carry the patient's true identity."""
