"""LLaMA-Factory's greedy knapsack, which SDAR packs whole documents with (`neat_packing`).

In: lengths. Out: lengths by row. Nothing here shares code with the library.
"""


def greedy_knapsack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Fill one row after the other: take the longest that still fits, until none does.

    Raises:
        ValueError: one is longer than a row (the original never returns).
    """
    if any(length > capacity for length in lengths):
        raise ValueError(f"a document of {max(lengths)} tokens does not fit into a row of {capacity}")
    left = sorted(lengths)
    rows: list[list[int]] = []
    while left:
        row: list[int] = []
        room = capacity
        while any(length <= room for length in left):
            longest = max(length for length in left if length <= room)
            left.remove(longest)
            row.append(longest)
            room -= longest
        rows.append(row)
    return rows
