"""The mask references against pictures drawn by hand."""

import itertools

import pytest

from tests.references import masks


def rows(text: str) -> list[str]:
    """A typed picture: one row per line, spaces only for the eye."""
    return [line.replace(" ", "") for line in text.strip().splitlines()]


def test_causal_and_bidirectional_of_two_documents_and_padding() -> None:
    documents = [0, 0, 1, 1, 1, -1]
    assert masks.picture(masks.causal(documents))[:5] == rows("""
        #. ... .
        ## ... .
        .. #.. .
        .. ##. .
        .. ### .""")
    assert masks.picture(masks.bidirectional(documents))[:5] == rows("""
        ## ... .
        ## ... .
        .. ### .
        .. ### .
        .. ### .""")
    for sees in (masks.causal(documents), masks.bidirectional(documents)):
        assert sees[5][:5] == [False] * 5


def test_block_diffusion_of_four_tokens_in_blocks_of_two() -> None:
    assert masks.picture(masks.block_diffusion_doubled([0, 0, 0, 0], 2)) == rows("""
        ## .. .. ..
        ## .. .. ..
        .. ## ## ..
        .. ## ## ..
        .. .. ## ..
        .. .. ## ..
        .. .. ## ##
        .. .. ## ##""")


def test_block_diffusion_counts_blocks_per_document() -> None:
    picture = masks.picture(masks.block_diffusion_doubled([0, 0, 0, 1, 1, 1, -1], 2))
    assert [picture[i] for i in (0, 1, 2, 3, 4, 5)] == rows("""
        ##. ... . ... ... .
        ##. ... . ... ... .
        ..# ... . ##. ... .
        ... ##. . ... ... .
        ... ##. . ... ... .
        ... ..# . ... ##. .""")
    assert [picture[i] for i in (7, 8, 9, 10, 11, 12)] == rows("""
        ... ... . ##. ... .
        ... ... . ##. ... .
        ... ... . ### ... .
        ... ... . ... ##. .
        ... ... . ... ##. .
        ... ... . ... ### .""")
    for q in (6, 13):
        assert {picture[q][k] for k in range(14) if k not in (6, 13)} == {"."}


def test_tidar_figure_three_left() -> None:
    assert masks.picture(masks.tidar_doubled([0] * 6, 3, "clean_first")) == rows("""
        #.. ... ... ...
        ##. ... ... ...
        ### ... ... ...
        ### #.. ... ...
        ### ##. ... ...
        ### ### ... ...
        ... ... ### ...
        ... ... ### ...
        ... ... ### ...
        ### ... ... ###
        ### ... ... ###
        ### ... ... ###""")
    assert masks.doubled_position_ids([0] * 6) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


def test_tidar_noisy_first_of_packed_documents() -> None:
    assert masks.picture(masks.tidar_doubled([0, 0, 0, 1, 1], 2)) == rows("""
        ##. .. ... ..
        ##. .. ... ..
        ..# .. ##. ..
        ... ## ... ..
        ... ## ... ..
        ... .. #.. ..
        ... .. ##. ..
        ... .. ### ..
        ... .. ... #.
        ... .. ... ##""")
    assert masks.doubled_position_ids([0, 0, 0, 1, 1]) == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]


def test_tidar_orders_are_one_mask() -> None:
    documents = [3, 3, 3, 3, 0, 0, -1]
    noisy_first = masks.tidar_doubled(documents, 3, "noisy_first")
    clean_first = masks.tidar_doubled(documents, 3, "clean_first")
    for q, k in itertools.product(range(14), repeat=2):
        assert noisy_first[q][k] == clean_first[(q + 7) % 14][(k + 7) % 14]


def test_tidar_split() -> None:
    assert masks.picture(masks.tidar_split(6, 3, 2)) == rows("""
        #.. .. .
        ##. .. .
        ### .. .
        ### ## .
        ### ## .
        ### .. #""")
    assert masks.tidar_split_position_ids(4) == [0, 1, 2, 3]


def test_tidar_prefill_and_step() -> None:
    assert masks.picture(masks.tidar_prefill(3, 2)) == rows("""
        #.. ..
        ##. ..
        ### ..
        ### ##
        ### ##""")
    assert masks.tidar_prefill_position_ids(3, 2) == [0, 1, 2, 3, 4]
    assert masks.picture(masks.tidar_step(4, 3)) == rows("""
        #### #.. ... ... ...
        #### ##. ... ... ...
        #### ### ... ... ...
        #### #.. ### ... ...
        #### #.. ### ... ...
        #### #.. ### ... ...
        #### ##. ... ### ...
        #### ##. ... ### ...
        #### ##. ... ### ...
        #### ### ... ... ###
        #### ### ... ... ###
        #### ### ... ... ###""")
    assert masks.tidar_step_position_ids(4, 3) == [4, 5, 6, 5, 6, 7, 6, 7, 8, 7, 8, 9]


def test_tidar_linear() -> None:
    assert masks.picture(masks.tidar_linear(2, 3)) == rows("""
        ## #..
        ## ###
        ## ###""")
    assert masks.tidar_linear_position_ids(2, 3) == [2, 3, 4]
    assert masks.picture(masks.tidar_linear_verify(3, 3)) == rows("""
        ### #.
        ### ##""")


def test_block_decode_and_fused_commit() -> None:
    assert masks.picture(masks.block_decode([2, 3, 4, 5], [0, 1, 2, 3, 4, 5], 2)) == rows("""
        ## ## ..
        ## ## ..
        ## ## ##
        ## ## ##""")
    assert masks.picture(masks.fused_commit(2, 2, 2)) == rows("""
        ## ## ..
        ## ## ..
        ## ## ##
        ## ## ##""")
    for start, block_length in ((0, 3), (3, 3), (8, 4)):
        positions = list(range(start, start + 2 * block_length))
        keys = list(range(start + 2 * block_length))
        expected = masks.block_decode(positions, keys, block_length)
        assert masks.fused_commit(start, block_length, start) == expected


def test_documents_are_contiguous() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        masks.block_diffusion_doubled([0, 1, 0], 2)
    assert masks.unspecified(-1, -1) and not masks.unspecified(-1, 0) and not masks.unspecified(0, 0)
