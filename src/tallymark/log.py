"""The logger ``tallymark``. ``logging`` is loaded when there is something to say, which is hardly ever."""


def warning(message: str, *arguments: object) -> None:
    """Something that an operator has to know."""
    import logging

    logging.getLogger("tallymark").warning(message, *arguments)


def info(message: str, *arguments: object) -> None:
    """Something that an operator may want to know."""
    import logging

    logging.getLogger("tallymark").info(message, *arguments)
