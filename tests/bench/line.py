"""What a benchmark hands back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One measured figure, and the budget it is held against: the most it may be, or the least."""

    what: str
    value: float
    unit: str
    budget: float
    at_least: bool = False
    clear: bool = True  # more pairs would not change the verdict

    @property
    def kept(self) -> bool:
        """Whether the figure is within its budget."""
        return self.value >= self.budget if self.at_least else self.value <= self.budget
