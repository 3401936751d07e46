"""Masks in the files of other programs, made from the COCO JSON of each picture.

Imports masks and what lies below. Entry points: ``names.EXPORTS``, ``export.export``.
"""
