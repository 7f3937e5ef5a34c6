"""What a backend raises for values that it finds to be bad while it reads them."""

from __future__ import annotations


class BadInput(ValueError):
    """A tensor holds a value that it may not.

    `argument` names the tensor, "labels" or "class_max"; `index` is the flat index of the first such value in it. The
    backend knows neither how the tensor came to be nor what its user calls it: `checks` makes the message.
    """

    def __init__(self, argument: str, index: int) -> None:
        super().__init__(argument, index)
        self.argument = argument
        self.index = index

    def __str__(self) -> str:
        return f"{self.argument}: bad value at flat index {self.index}"
