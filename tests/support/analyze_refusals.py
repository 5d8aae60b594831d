"""How `hf-rat analyze` refuses what it is asked."""

from hf_rat.cli import analyze


def refused(words, capsys):
    """The one line that a command line is refused with."""
    capsys.readouterr()
    assert analyze.main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
