"""Parameters of a SAM as numpy arrays: from Meta's files, in parameter folders, checked.

Imports errors and files only. Entry points: ``meta.read_checkpoint``,
``parameters.load_parameters`` and ``save_parameters``.
"""
