"""Model packages, preprocessing, ONNX sessions and results as DICOM."""
