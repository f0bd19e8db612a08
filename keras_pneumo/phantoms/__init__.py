"""Synthetic chest radiographs (phantoms), written in the layout of the SIIM-ACR folder.

From a seed to a folder: ``cohort`` (who the patients are, and what each image shows), ``anatomy``, ``soft_tissue``,
``bones``, ``lungs`` and ``devices`` (maps of what the beam crosses, drawn with ``geometry``), ``exposure`` (from
attenuation to grey), ``render`` (all of it for one image), ``dicom`` (one file) and ``folder`` (all files and tables).
"""
