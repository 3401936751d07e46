"""Models by name: which checkpoints there are, and what was made of one, kept in the user's cache.

Imports building and what lies below. Entry points: ``catalogue.find_checkpoint``,
``cache.prepare``.
"""
