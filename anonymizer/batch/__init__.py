"""Whole files and folders: found, de-identified by processes, written without leaving OUT, resumable."""
