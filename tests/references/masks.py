"""Who sees whom, method by method, one cell at a time. Slow on purpose: these are references for tests.

Every mask is a nested list: `sees[q][k]` is True when query token q may attend to key token k. `documents[i]`
is the id of the packed document that token i belongs to, -1 for padding. Nothing here shares code with the
library.
"""

PADDING = -1

Mask = list[list[bool]]


def unspecified(document_q: int, document_k: int) -> bool:
    """Cells that a test must skip: what padding sees of padding is nobody's business."""
    return document_q == PADDING and document_k == PADDING


def blocks_of(documents: list[int], block_length: int) -> list[int]:
    """Block number of every token, counted from the start of its own document (padding: -1).

    Block Diffusion (BD3-LM), section 3; SDAR counts the blocks of packed documents per document.
    """
    places = places_of(documents)
    return [PADDING if documents[i] == PADDING else places[i] // block_length for i in range(len(documents))]


def places_of(documents: list[int]) -> list[int]:
    """Place of every token inside its own document, 0 for its first token (padding: 0)."""
    places: list[int] = []
    finished: set[int] = set()
    for index, document in enumerate(documents):
        if document == PADDING:
            places.append(0)
        elif index > 0 and documents[index - 1] == document:
            places.append(places[index - 1] + 1)
        else:
            if document in finished:
                raise ValueError(f"document {document} is not contiguous")
            finished.add(document)
            places.append(0)
    return places


def causal(documents: list[int]) -> Mask:
    """Autoregressive models: a token sees the tokens of its own document up to and including itself."""
    sees: Mask = []
    for q in range(len(documents)):
        row: list[bool] = []
        for k in range(len(documents)):
            if documents[q] == PADDING or documents[k] == PADDING:
                row.append(q == k)
            elif documents[q] != documents[k]:
                row.append(False)
            else:
                row.append(k <= q)
        sees.append(row)
    return sees


def bidirectional(documents: list[int]) -> Mask:
    """Masked diffusion (MDLM, LLaDA): a token, masked or not, sees every token of its own document."""
    sees: Mask = []
    for q in range(len(documents)):
        row: list[bool] = []
        for k in range(len(documents)):
            if documents[q] == PADDING or documents[k] == PADDING:
                row.append(q == k)
            else:
                row.append(documents[q] == documents[k])
        sees.append(row)
    return sees


def block_diffusion_doubled(documents: list[int], block_length: int) -> Mask:
    """Training mask of Block Diffusion (BD3-LM, section 3) and SDAR. Layout [noisy | clean], 2L tokens.

    noisy q, noisy k: same block.  noisy q, clean k: block of k before block of q.
    clean q, clean k: block of k not after block of q.  clean q, noisy k: never.
    """
    length = len(documents)
    blocks = blocks_of(documents, block_length)
    sees: Mask = []
    for row_index in range(2 * length):
        q_noisy, q = row_index < length, row_index % length
        row: list[bool] = []
        for column_index in range(2 * length):
            k_noisy, k = column_index < length, column_index % length
            if documents[q] == PADDING or documents[k] == PADDING:
                row.append(row_index == column_index)
            elif documents[q] != documents[k]:
                row.append(False)
            elif q_noisy and k_noisy:
                row.append(blocks[q] == blocks[k])
            elif q_noisy and not k_noisy:
                row.append(blocks[k] < blocks[q])
            elif not q_noisy and not k_noisy:
                row.append(blocks[k] <= blocks[q])
            else:
                row.append(False)
        sees.append(row)
    return sees


def tidar_doubled(documents: list[int], block_length: int, order: str = "noisy_first") -> Mask:
    """Training mask of TiDAR (arXiv 2511.08923, Figure 3 left). The paper's own order is 'clean_first'.

    clean q, clean k: plain causal.  clean q, mask k: never.
    mask q, clean k: only clean tokens strictly before the block of q.  mask q, mask k: same block.
    """
    if order not in ("noisy_first", "clean_first"):
        raise ValueError(order)
    length = len(documents)
    blocks = blocks_of(documents, block_length)
    sees: Mask = []
    for row_index in range(2 * length):
        q_noisy, q = (row_index < length) == (order == "noisy_first"), row_index % length
        row: list[bool] = []
        for column_index in range(2 * length):
            k_noisy, k = (column_index < length) == (order == "noisy_first"), column_index % length
            if documents[q] == PADDING or documents[k] == PADDING:
                row.append(row_index == column_index)
            elif documents[q] != documents[k]:
                row.append(False)
            elif q_noisy and k_noisy:
                row.append(blocks[q] == blocks[k])
            elif q_noisy and not k_noisy:
                row.append(blocks[k] < blocks[q])
            elif not q_noisy and not k_noisy:
                row.append(k <= q)
            else:
                row.append(False)
        sees.append(row)
    return sees


def doubled_position_ids(documents: list[int]) -> list[int]:
    """RoPE positions of a doubled layout, either order: both halves count documents from 0 (padding: 0)."""
    return places_of(documents) + places_of(documents)


def tidar_split(length: int, clean_length: int, block_length: int) -> Mask:
    """The clean-ratio layout of the first public TiDAR port: [clean x C | M x (length - C)].

    Clean tokens are causal and never see the tail. A tail token sees the whole clean head and its own block,
    where the blocks of the tail are counted from the end of the head.
    """
    sees: Mask = []
    for q in range(length):
        row: list[bool] = []
        for k in range(length):
            if q < clean_length and k < clean_length:
                row.append(k <= q)
            elif q < clean_length:
                row.append(False)
            elif k < clean_length:
                row.append(True)
            else:
                row.append((q - clean_length) // block_length == (k - clean_length) // block_length)
        sees.append(row)
    return sees


def tidar_split_position_ids(length: int) -> list[int]:
    """RoPE positions of the clean-ratio layout: 0..length-1, running on through the tail."""
    return list(range(length))


def block_decode(positions_q: list[int], positions_k: list[int], block_length: int) -> Mask:
    """SDAR decoding (prefill, denoising, commit): key position s is seen from p when block(s) <= block(p).

    Blocks are aligned to absolute position 0, so the tail of the prompt shares the first decoded block.
    """
    return [[s // block_length <= p // block_length for s in positions_k] for p in positions_q]


def fused_commit(start: int, block_length: int, cached: int) -> Mask:
    """One forward that commits block k and takes the first denoising step of block k+1.

    Queries: [block k, final | block k+1, all masks], from absolute position `start`. Keys: the committed
    tokens 0..cached-1, then the queries. Block k sees the cache and itself; block k+1 sees everything.
    """
    if start % block_length != 0 or cached != start:
        raise ValueError("block k starts at a multiple of block_length, right behind the cache")
    sees: Mask = []
    for q in range(2 * block_length):
        row: list[bool] = []
        for k in range(cached + 2 * block_length):
            if k >= cached + block_length:
                row.append(q >= block_length)
            else:
                row.append(True)
        sees.append(row)
    return sees


def tidar_prefill(prompt_length: int, draft_length: int) -> Mask:
    """TiDAR Figure 7: [prompt | M x k]. The prompt is causal; the masks see the prompt and one another."""
    sees: Mask = []
    for q in range(prompt_length + draft_length):
        row: list[bool] = []
        for k in range(prompt_length + draft_length):
            if q >= prompt_length:
                row.append(True)
            elif k >= prompt_length:
                row.append(False)
            else:
                row.append(k <= q)
        sees.append(row)
    return sees


def tidar_prefill_position_ids(prompt_length: int, draft_length: int) -> list[int]:
    """RoPE positions of the prefill: 0..P-1 for the prompt, P..P+k-1 for the masks."""
    return list(range(prompt_length + draft_length))


def tidar_step(committed: int, draft_length: int) -> Mask:
    """One TiDAR step (Figure 3 right): [d_0 .. d_{k-1} | M x k (block 0) | ... | M x k (block k-1)].

    Keys: the committed cache, then the queries. d_i sees the cache and d_0..d_i. Block j, which drafts for
    the outcome 'exactly d_0..d_j accepted', sees the cache, d_0..d_j and itself, and no other block.
    """
    queries = draft_length + draft_length * draft_length
    sees: Mask = []
    for q in range(queries):
        row: list[bool] = [True] * committed
        for k in range(queries):
            if q < draft_length and k < draft_length:
                row.append(k <= q)
            elif q < draft_length:
                row.append(False)
            elif k < draft_length:
                row.append(k <= (q - draft_length) // draft_length)
            else:
                row.append((q - draft_length) // draft_length == (k - draft_length) // draft_length)
        sees.append(row)
    return sees


def tidar_step_position_ids(committed: int, draft_length: int) -> list[int]:
    """RoPE positions of a step: drafts P..P+k-1; block j continues behind d_j: P+j+1..P+j+k."""
    positions = [committed + i for i in range(draft_length)]
    for block in range(draft_length):
        for slot in range(draft_length):
            positions.append(committed + block + 1 + slot)
    return positions


def tidar_linear(committed: int, draft_length: int) -> Mask:
    """First forward of linear mode: [y | M x (k-1)]; y is a clean token that this forward commits.

    y sees the cache and itself (its keys and values must be those of a causal pass). The masks see the cache,
    y and one another.
    """
    sees: Mask = []
    for q in range(draft_length):
        row: list[bool] = [True] * committed
        for k in range(draft_length):
            if q == 0:
                row.append(k == 0)
            else:
                row.append(True)
        sees.append(row)
    return sees


def tidar_linear_position_ids(committed: int, draft_length: int) -> list[int]:
    """RoPE positions of linear mode's first forward: y at P, the masks at P+1..P+k-1."""
    return [committed + i for i in range(draft_length)]


def tidar_linear_verify(committed: int, draft_length: int) -> Mask:
    """Second forward of linear mode: d_1..d_{k-1}, causal behind `committed` cached tokens, y last."""
    return [[True] * committed + [k <= q for k in range(draft_length - 1)] for q in range(draft_length - 1)]


def picture(sees: Mask) -> list[str]:
    """'#' for a cell that is seen, '.' for one that is not; one string per query."""
    return ["".join("#" if cell else "." for cell in row) for row in sees]
