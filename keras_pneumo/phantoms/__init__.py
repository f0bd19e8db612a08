"""Synthetic chest radiographs (phantoms), written as a SIIM-ACR folder is."""
