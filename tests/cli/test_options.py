"""Options made from settings."""

from unmask.cli.options import add_sampling, parser, sampling


def test_switches_need_no_value_but_take_one() -> None:
    options = parser("try", "", "")
    options.add_argument("words", nargs="*")
    add_sampling(options)
    for words, expected in (
        (["--defer-eos"], True),
        (["--defer_eos", "false"], False),
        (["--confidence_eos_eot_inf"], True),
        ([], None),
    ):
        assert sampling(options.parse_args(words)).defer_eos is expected
    assert sampling(options.parse_args(["--ignore-eos", "--n", "2"])).ignore_eos
