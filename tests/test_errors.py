import warnings

from memorization.errors import Caution, one_line_errors


def test_a_warning_of_ours_is_one_line_and_others_are_as_they_were():
    @one_line_errors
    def main(argv):
        return [warnings.formatwarning(kind("look out"), kind, "file.py", 7) for kind in (Caution, UserWarning)]

    ours, other = main([])
    assert ours == "warning: look out\n" and other == "file.py:7: UserWarning: look out\n"
    assert warnings.formatwarning(Caution("look out"), Caution, "file.py", 7) == "file.py:7: Caution: look out\n"
