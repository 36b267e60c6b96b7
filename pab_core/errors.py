"""The one exception that means: the user can correct this."""


class PabError(ValueError):
    """A mistake in what was asked for or in the files given.

    The message is a sentence or two for the user: what happened, what it means, what to do.
    Command line, nodes and app show it as it is; anything else that is raised is a bug.
    """
