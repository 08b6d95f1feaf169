"""What is said when results do not have what a table or a figure is made of."""


class Missing(ValueError):
    """There are no such results: not an error of those that are there.

    Attributes:
      what: In a few words, such as `no cost.json`.
    """

    def __init__(self, message: str, *, what: str) -> None:
        super().__init__(message)
        self.what = what
