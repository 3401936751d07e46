"""The one exception that users see: one line that says what happened and what to do."""


class SamtrtError(Exception):
    """An error the user can act on.

    The message is one line: what happened, what was expected, what to do. The scripts print it
    as ``error: …`` and exit with status 1, without a traceback.
    """


class CheckpointError(SamtrtError):
    """A checkpoint or parameter folder that cannot be used."""


class EngineError(SamtrtError):
    """An engine that cannot be built, or that does not belong to this machine or parameter set."""


class InputError(SamtrtError):
    """A picture, prompt or option that cannot be used."""
