"""The exception for what a user can mend: jobs end with its sentence and exit status 2."""


class InputError(ValueError):
    """An unusable argument or input: the message names the item, the value and the remedy."""
