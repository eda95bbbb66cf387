"""Words that messages, reports and figures put around numbers and untrusted values.

How a list of problems is gathered and shown lives in `workflow.problems`, what an error says where it is raised.
"""


def counted(number: int, noun: str) -> str:
    """A number with its noun, which takes a plain plural."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def quoted(value: str) -> str:
    """The value in quotes if it looks like a word, else only its size: it might be a piece of an essay."""
    if len(value) <= 64 and value.isprintable() and not any(character.isspace() for character in value):
        return repr(value)
    return f"({len(value)} characters, not shown)"
