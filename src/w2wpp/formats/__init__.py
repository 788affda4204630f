"""Adapter files of other libraries: read and write, one file each."""
