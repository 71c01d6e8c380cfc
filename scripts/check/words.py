"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """Return such as ``1 case`` and ``2 cases``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def were(number: int, noun: str) -> str:
    """Return such as ``1 page was`` and ``2 pages were``."""
    return f"{counted(number, noun)} {'was' if number == 1 else 'were'}"
