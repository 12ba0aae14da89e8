"""What the user can put right: shown as one line, exit code 2."""


class UserError(Exception):
    """Bad input; the message is one line that says what and where."""
