"""The console command ``samtrt``: a module a command, with its options and what it does.

The scripts of examples/sam are doors to the same modules. Imports anything; nothing imports it
but the entry points. Modules that bring torch along are imported by the command that runs, so that
``--help`` is there at once. Entry point: ``commands.main``.
"""
