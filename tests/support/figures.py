"""What the faults cost in this run, as the table that the README shows."""

from dataclasses import dataclass

HEADS = ("fault", "what the bridge does", "lost", "doubled", "consuming again after")


@dataclass(frozen=True, slots=True)
class Row:
    """One fault; its figures as text, since what they are of differs."""

    fault: str
    does: str
    lost: str
    doubled: str = "0"
    after: str = ""


rows: list[Row] = []


def record(fault: str, does: str, lost: str, doubled: str = "0", after: str = "") -> None:
    """Adds a row to the table of this run."""
    rows.append(Row(fault, does, lost, doubled, after))


def table() -> str:
    """All rows so far, in Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {row.fault} | {row.does} | {row.lost} | {row.doubled} | {row.after} |" for row in rows]
    return "\n".join(lines)
