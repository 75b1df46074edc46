"""Everything this package raises on purpose.

    SelfjudgeError
    ├── ConfigError      an option: unknown name, wrong value, a finished step whose options were changed
    ├── DataError        a row of an input file: which file, which row, what is allowed
    ├── ModelError       a model folder, its tokenizer or its chat template
    └── StepError        a step could not finish although its input was right (disk full, no usable rows)

Every message is one line that names the value, what is allowed and what to do; the command line prints it and
exits with code 2.
"""


class SelfjudgeError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(SelfjudgeError):
    """An option is unknown, has a wrong value, or contradicts a step that has already run."""


class DataError(SelfjudgeError):
    """An input file or one of its rows cannot be used."""

    @classmethod
    def at(cls, source: str, row: int | None, problem: str) -> "DataError":
        """`source` is a file name or `<stdin>`; `row` counts from 1."""
        place = source if row is None else f"{source}, row {row}"
        return cls(f"{place}: {problem}")


class ModelError(SelfjudgeError):
    """A model, its tokenizer or its chat template cannot be used."""


class StepError(SelfjudgeError):
    """A step could not finish."""
