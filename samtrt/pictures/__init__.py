"""Pictures: read from untrusted files, resized into the model's frame, drawn with their masks.

Imports errors and files only. Entry points: ``reading.load_image``, ``transforms.preprocess``.
"""
