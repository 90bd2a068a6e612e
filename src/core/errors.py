"""Whose fault an error is: the user's, who is told in one line what to mend, or ours."""

from src.core.text import visible


class UserError(ValueError):
    """What a user can mend: the message is one line that names the value and the remedy.

    Anything else that is raised is a mistake of this project, or of a library that it uses, and ends in a traceback.
    """


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line; its kind where it says nothing."""
    return visible((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":"), keep="")


# said below the traceback of any other error
REPORT = (
    "this is a mistake of the workbench, not yours; please report it, with these lines (CONTRIBUTING.md says where)"
)
