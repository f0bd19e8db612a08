"""The detector: finished runs with one answer. Fitting, folder, answers, DICOM output."""
