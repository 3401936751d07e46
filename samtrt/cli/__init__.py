"""The console command ``samtrt`` and what examples/sam/*.py call.

Imports anything; nothing imports it. Entry point: ``commands.main``.
"""
