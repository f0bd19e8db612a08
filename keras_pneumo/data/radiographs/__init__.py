"""From a file to grey pixels: DICOM, PNG and JPEG, under limits."""
