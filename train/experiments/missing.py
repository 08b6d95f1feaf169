"""The error for results without the rows of a table or a figure."""


class Missing(ValueError):
    """The results do not exist; the existing ones are correct.

    Attributes:
      what: The missing thing in a few words, such as `no cost.json`.
    """

    def __init__(self, message: str, *, what: str) -> None:
        super().__init__(message)
        self.what = what
