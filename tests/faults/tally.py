"""What was tried, and what was lost."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of an experiment."""

    tried: int = 0
    losses: list[str] = field(default_factory=list)

    def add(self, name: str, loss: str) -> None:
        """Count a try; `loss` says what went wrong, and is empty if nothing did."""
        self.tried += 1
        if loss:
            self.losses.append(f"{name}: {loss}")
            print(f"LOST {self.losses[-1]}", flush=True)

    def __add__(self, other: Tally) -> Tally:
        """Count both."""
        return Tally(self.tried + other.tried, self.losses + other.losses)

    def __str__(self) -> str:
        """The line that ends a report."""
        lost = len(self.losses)
        return f"{self.tried} tried, {self.tried - lost} survived, {lost} lost"
