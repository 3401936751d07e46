"""Work over many pictures.

Imports masks and what lies below. Entry point: ``folder.segment_folder``.
"""
