"""What the library says of its arguments is said on the command line of flags."""

import pytest

from hf_rat import parse
from hf_rat.finetuning.flag_names import errors_in_flags, in_flags


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("reg='x' cannot be read", "--reg 'x' cannot be read"),
        (
            "reg_alpha=2.0 is set, but nothing in reg='fgm' has alpha",
            "--reg_alpha 2.0 is set, but nothing in --reg 'fgm' has alpha",
        ),
        ("give encoding=, perhaps latin-1", "give --encoding, perhaps latin-1"),
        ("which quoting=minimal takes off", "which --quoting minimal takes off"),
        ("train_file '/a/train_file.csv': no such file", "--train_file '/a/train_file.csv': no such file"),
        ("there is no column 'label_column_name'", "there is no column 'label_column_name'"),
        ("rat(epsilon=0.1) names no model; args.reg_alpha", "rat(epsilon=0.1) names no model; args.reg_alpha"),
        (
            "--output_dir 'x' is not empty, or --resume_from_checkpoint",
            "--output_dir 'x' is not empty, or --resume_from_checkpoint",
        ),
        ("the seed of the model", "the seed of the model"),
    ],
)
def test_arguments_are_flags(message, said):
    assert in_flags(message) == said


def test_the_library_knows_no_flag_and_the_command_line_does():
    with pytest.raises(ValueError, match=r"^regularizer='fgmm' names an unknown regularizer 'fgmm'; did you mean fgm"):
        parse("fgmm")
    with pytest.raises(ValueError, match=r"^--reg 'fgmm' names an unknown"), errors_in_flags():
        parse("fgmm", argument="reg")
